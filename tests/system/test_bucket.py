"""A coordinator whose blobs are in a bucket: the same models as with a directory, through kills of
the coordinator and absences of the store."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from headwater.errors import StorageError
from headwater.v1 import fleet_pb2 as pb
from tests.s3 import CREDENTIALS, S3Server
from tests.system.device import Device, Stream
from tests.system.fleet import Fleet, FleetFactory
from tests.system.processes import eventually, run

Bucketed = Callable[..., tuple[Fleet, str]]


@pytest.fixture
def bucketed(new_fleet: FleetFactory, s3_server: S3Server) -> Bucketed:
    """A fleet that serves with a new bucket, and the bucket's URL."""

    def make(*options: str) -> tuple[Fleet, str]:
        fleet, url = new_fleet(), s3_server.new_bucket()
        fleet.environment.update(CREDENTIALS)
        fleet.serve("--lease-seconds", "60", "--blobs", url, *options)
        return fleet, url

    return make


def devices_of(fleet: Fleet) -> tuple[list[Device], list[Stream]]:
    devices = [fleet.device(name) for name in ("ann", "ben")]
    return devices, [device.attend() for device in devices]


def trained(fleet: Fleet) -> list[str]:
    """The digests of a job of two real clients that nothing disturbs."""
    fleet.client("ann")
    fleet.client("ben")
    job = fleet.submit(count=2)
    fleet.finish(job)
    return fleet.digests(job)


def stored(fleet: Fleet, url: str, *command: str, code: int = 0) -> str:
    """What a command on the coordinator's data prints; checks its exit code."""
    places = ("--data-directory", str(fleet.data), "--blobs", url)
    done = run(*command, *places, environment=CREDENTIALS)
    assert done.code == code, done
    return done.out + done.err


def test_the_models_are_those_of_a_directory_through_a_kill(
    bucketed: Bucketed, new_fleet: FleetFactory, tmp_path: Path
) -> None:
    """Killed while one update is accepted and one is awaited, and started again without any copy on
    its machine: the accepted update is not asked for again, and the versions are the same."""
    fleet, url = bucketed()
    gate = tmp_path / "gate"
    gate.touch()
    fleet.client("ann")
    fleet.gated_client("ben", gate, "train")
    job = fleet.submit(count=2)
    accepted = fleet.wait_row(job, "ann", "accepted")
    fleet.serving.kill()
    shutil.rmtree(fleet.data / "blob-cache")
    gate.unlink()
    fleet.serve()
    fleet.finish(job)
    row = fleet.ledger(job)["ann"]
    assert (row.update_digest, row.ended_at) == (accepted.update_digest, accepted.ended_at)
    assert not (fleet.data / "blobs").exists()
    for command in (("storage", "verify"), ("storage", "backup", str(tmp_path / "backup"))):
        assert "nothing wrong" in stored(fleet, url, *command)
    assert "the same weights, bit for bit" in stored(fleet, url, "replay", job, "1")
    digests = fleet.digests(job)
    assert len(digests) == 3
    calm = new_fleet()
    calm.serve("--lease-seconds", "60")
    assert trained(calm) == digests
    restored = new_fleet()
    restored.data = tmp_path / "backup"
    restored.serve()
    assert restored.digests(job) == digests


def test_a_small_cache_changes_no_bit(bucketed: Bucketed, new_fleet: FleetFactory) -> None:
    """Without room for copies, every fold and every download fetches what it needs."""
    fleet, _ = bucketed("--blob-cache-gib", "0")
    digests = trained(fleet)
    assert [*(fleet.data / "blob-cache").glob("??/*")] == []
    calm = new_fleet()
    calm.serve("--lease-seconds", "60")
    assert trained(calm) == digests


def test_uploads_wait_while_the_store_is_away(bucketed: Bucketed, s3_server: S3Server) -> None:
    """No receipt without the bucket; what had one stays; the upload goes on where it was."""
    fleet, _ = bucketed()
    (ann, ben), (ann_stream, ben_stream) = devices_of(fleet)
    job = fleet.submit(count=1, evaluate={"on": ["coordinator"]})
    ann_id = ann_stream.next("assignment").assignment_id
    ben_id = ben_stream.next("assignment").assignment_id
    receipt = ann.deliver(ann_id, ann.update(0.01))
    late = ben.update(0.02)
    assert ben.offer(ben_id, late).from_byte == 0
    with s3_server.away():
        with pytest.raises(StorageError, match="the object store does not answer"):
            ben.submit(ben_id, late)
        assert {name: row.state for name, row in fleet.ledger(job).items()} == {
            "ann": "accepted",
            "ben": "uploading",
        }
        again = ann.offer(ann_id, ann.update(0.01))
        assert (again.verdict, again.receipt) == (pb.OFFER_VERDICT_HAVE_IT, receipt)
        with pytest.raises(StorageError, match="the object store does not answer"):
            fleet.submit()
    answer = ben.offer(ben_id, late)
    assert answer.from_byte == len(late.encoded)
    ben.submit(ben_id, late, [], from_byte=answer.from_byte)
    (step,) = fleet.finish(job)
    assert (step.state, step.accepted) == ("committed", 2)


def test_a_job_waits_by_itself_while_the_store_is_away(
    bucketed: Bucketed, s3_server: S3Server
) -> None:
    """A round whose deadline comes while the store is away is folded and cannot be kept: the job
    says so, and commits the round once the store is back."""
    fleet, _ = bucketed()
    (ann, _), (ann_stream, _) = devices_of(fleet)
    job = fleet.submit(count=1, quorum=1, deadline_seconds=8, evaluate={"on": ["coordinator"]})
    ann.deliver(ann_stream.next("assignment").assignment_id, ann.update(0.01))
    with s3_server.away():
        assert fleet.rounds(job)[0].state == "open"
        eventually(
            lambda: "store does not answer" in fleet.control.show_job(job).waiting_for,
            "a reason to wait",
        )
        assert fleet.job(job).state == "running"
        assert fleet.rounds(job)[0].state == "closing"
    (step,) = fleet.finish(job)
    assert (step.state, step.accepted) == ("committed", 1)
    assert len(fleet.digests(job)) == 2


def test_what_is_wrong_with_a_bucket_is_one_line(tmp_path: Path, s3_server: S3Server) -> None:
    """At start: exit code 3 (2 for a wrong URL), and the data directory is not held."""
    for url, code, words in (
        (f"s3://nowhere?endpoint={s3_server.endpoint}", 3, "create the bucket, or name another"),
        ("s3://bucket?endpoint=host:1", 2, "write http://HOST:PORT"),
        ("/somewhere", 2, "write s3://BUCKET/PREFIX"),
    ):
        options = ("--data-directory", str(tmp_path), "--blobs", url, "--listen", "127.0.0.1:0")
        done = run("serve", *options, environment=CREDENTIALS)
        assert done.code == code and words in done.err, done
        assert len(done.err.strip().splitlines()) == 1, done.err
