"""A full disk on either side: a clear error, nothing acknowledged is lost, and work goes on."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headwater.errors import DiskFullError
from headwater.v1 import fleet_pb2 as pb
from tests.system.fleet import Fleet, FleetFactory
from tests.system.processes import eventually, run


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Iterator[Path]:
    """A file system of that size; only root can make one."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", str(folder)]
    made = subprocess.run(mount, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"this machine forbids mounting: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A file that takes all the space that is left."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (2**16, 2**12, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    return ballast


@pytest.fixture
def full_fleet(new_fleet: FleetFactory) -> Iterator[Fleet]:
    """A fleet whose coordinator lives on a disk of 8 MiB."""
    fleet = new_fleet()
    with small_disk(fleet.data, 8):
        fleet.serve("--lease-seconds", "60")
        yield fleet
        fleet.end()


def test_the_coordinators_disk_is_full(full_fleet: Fleet) -> None:
    """Full disk at the coordinator: uploads and commits wait with a clear error, what it had
    acknowledged stays, and the round goes on when space is freed."""
    fleet = full_fleet
    ann, ben = fleet.device("ann"), fleet.device("ben")
    ann_stream, ben_stream = ann.attend(), ben.attend()
    job = fleet.submit(count=2, evaluate={"on": ["coordinator"]})
    ann_id = ann_stream.next("assignment").assignment_id
    ben_id = ben_stream.next("assignment").assignment_id
    receipt = ann.deliver(ann_id, ann.update(0.01))
    ballast = fill(fleet.data)
    late = ben.update(0.02)
    with pytest.raises(DiskFullError, match="no space is left"):
        for _ in range(200):  # the database's own file may have room for a few more
            ben.offer(ben_id, late)
            ben.submit(ben_id, late)
            raise AssertionError("it was accepted on a full disk")
    assert fleet.ledger(job)["ann"].state == "accepted"
    again = ann.offer(ann_id, ann.update(0.01))
    assert (again.verdict, again.receipt) == (pb.OFFER_VERDICT_HAVE_IT, receipt)
    assert fleet.serving.alive
    assert "Traceback" not in fleet.serving.text
    ballast.unlink()
    ben.deliver(ben_id, late)
    for device, stream in ((ann, ann_stream), (ben, ben_stream)):
        device.deliver(stream.next("assignment").assignment_id)
    rounds = fleet.finish(job)
    assert [(one.state, one.accepted) for one in rounds] == [("committed", 2)] * 2


def test_a_disk_that_is_full_when_a_round_closes(full_fleet: Fleet) -> None:
    """Full disk between two rounds: the job is not paused and not lost; it says what it waits for
    and goes on by itself when space is freed."""
    fleet = full_fleet
    ann = fleet.device("ann")
    ballast = fill(fleet.data)
    with pytest.raises(DiskFullError):
        for _ in range(50):
            ann.attend().close()
            fleet.control.change(fleet.submit(), "cancel")
    ballast.unlink()
    stream = ann.attend()
    job = fleet.submit(count=2, cohort=1, quorum=1, evaluate={"on": ["coordinator"]})
    first = stream.next("assignment").assignment_id
    update = ann.update()
    ann.offer(first, update)
    ballast = fill(fleet.data)
    with pytest.raises(DiskFullError):
        ann.submit(first, update)
    ballast.unlink()
    ann.deliver(first, update)
    ann.deliver(stream.next("assignment").assignment_id)
    assert len(fleet.finish(job)) == 2


def test_a_job_waits_for_space_by_itself(full_fleet: Fleet) -> None:
    """Full disk when a round is to open: `jobs show` says so; it opens when space is freed."""
    fleet = full_fleet
    ann = fleet.device("ann")
    job = fleet.submit(count=1, cohort=1, quorum=1, evaluate={"on": ["coordinator"]})
    ballast = fill(fleet.data)
    try:
        stream = ann.attend()
    except DiskFullError:
        stream = None  # the database had no room for the device either
    if stream is not None:
        eventually(
            lambda: (
                "no space is left" in fleet.control.show_job(job).waiting_for or fleet.rounds(job)
            ),
            "a reason to wait",
        )
    ballast.unlink()
    stream = stream or ann.attend()
    ann.deliver(stream.next("assignment").assignment_id)
    fleet.finish(job)


def test_a_clients_disk_is_full(fleet: Fleet) -> None:
    """Full disk at a client: it declines with the reason, the others go on, and it takes part in
    the next job once space is freed."""
    fleet.client("able")
    with small_disk(fleet.state("full"), 2) as disk:
        client = fleet.client("full")
        ballast = fill(disk)
        job = fleet.submit(count=1, quorum=1)
        fleet.finish(job)
        row = fleet.ledger(job)["full"]
        assert row.state in ("declined", "failed")
        assert "space" in row.reason
        assert client.alive
        ballast.unlink()
        again = fleet.submit(count=1)
        fleet.finish(again)
        assert fleet.ledger(again)["full"].state == "accepted"
        client.stop()


def test_a_client_that_starts_on_a_full_disk(tmp_path: Path) -> None:
    """No room for an identity: exit code 3 and one line."""
    with small_disk(tmp_path / "disk", 1) as disk:
        fill(disk)
        done = run(
            *("run", "--coordinator", "127.0.0.1:1", "--state", str(disk / "state")),
            *("--data", "clusters=x.npz", "--trainer", "onnxruntime"),
            package="edge_client",
        )
    assert done.code == 3, done
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert "space" in done.err
