"""`headwater storage` beside a running coordinator and after it."""

import json
from pathlib import Path

import pytest

from tests.system.fleet import Fleet, FleetFactory
from tests.system.processes import Output, eventually, run


def storage(data: Path, command: str, *options: str, code: int = 0) -> Output:
    """A command on a data directory; checks its exit code."""
    done = run("storage", *command.split(), "--data-directory", str(data), *options)
    assert done.code == code, done
    assert "Traceback" not in done.out + done.err
    return done


def refused(done: Output, *words: str) -> None:
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert all(word in done.err for word in words), done.err


@pytest.fixture
def busy(new_fleet: FleetFactory) -> tuple[Fleet, str]:
    """Two real clients in a job that lasts as long as the test."""
    fleet = new_fleet()
    fleet.serve()
    fleet.client("ada")
    fleet.client("bob")
    job = fleet.submit(count=100_000)
    eventually(lambda: len(fleet.rounds(job)) > 3, "some rounds")
    return fleet, job


def test_beside_a_running_coordinator(busy: tuple[Fleet, str]) -> None:
    """Verify, status and collect while rounds commit: nothing is ever wrong, and nothing that the
    job needs is removed."""
    fleet, job = busy
    for _ in range(3):
        before = len(fleet.rounds(job))
        assert "nothing wrong" in storage(fleet.data, "verify").out
        storage(fleet.data, "collect", "--keep-update-rounds", "0")
        eventually(lambda n=before: len(fleet.rounds(job)) > n, "a further round")  # type: ignore[misc]
    seen = json.loads(storage(fleet.data, "status", "--json").out)
    assert seen["blobs"]["weights"]["count"] >= 4
    assert [one["job"] for one in seen["kept"]] == [job]
    shown = storage(fleet.data, "status").out
    assert "free disk" in shown and "as the coordinator says" in shown
    assert {one.state for one in fleet.rounds(job)[:-1]} == {"committed"}
    assert fleet.serving.stop() == 0
    assert "Traceback" not in fleet.serving.text
    assert "nothing wrong" in storage(fleet.data, "verify").out


def test_what_is_wrong_is_told_line_by_line(new_fleet: FleetFactory) -> None:
    """A lost and a damaged blob: exit code 1, a line each; the same as JSON; and no collection."""
    fleet = new_fleet()
    fleet.serve()
    fleet.client("ada")
    fleet.client("bob")
    job = fleet.submit(count=1)
    fleet.finish(job)
    first, second = fleet.digests(job)
    fleet.serving.stop()
    blobs = fleet.data / "blobs"
    (blobs / second[:2] / second).unlink()
    damaged = blobs / first[:2] / first
    damaged.write_bytes(b"\0" * damaged.stat().st_size)
    lines = storage(fleet.data, "verify", code=1).out.splitlines()
    assert len(lines) == 3
    assert any(f"blob {first}: " in line and "is damaged" in line for line in lines)
    assert any(line.startswith(f"job {job}, blob {second}: the weights of") for line in lines)
    assert lines[-1].endswith("2 findings")
    (lost,) = json.loads(storage(fleet.data, "verify --quick", "--json", code=1).out)["findings"]
    assert (lost["job"], lost["digest"], lost["check"]) == (job, second, "blob files")
    refused(storage(fleet.data, "collect", code=3), "1 blobs that", "nothing was removed")


def test_a_directory_that_is_no_data_directory(tmp_path: Path) -> None:
    """A wrong --data-directory: exit code 2, one line, and nothing is made."""
    for command in ("verify", "status", "collect"):
        refused(
            storage(tmp_path, command, code=2), f"{tmp_path} is no coordinator's data directory"
        )
    assert list(tmp_path.iterdir()) == []


def test_a_data_directory_without_a_database(tmp_path: Path) -> None:
    """Nor is a database made."""
    (tmp_path / "blobs").mkdir()
    refused(storage(tmp_path, "verify", code=3), "there is no database at", "headwater.db")
    assert not (tmp_path / "headwater.db").exists()
