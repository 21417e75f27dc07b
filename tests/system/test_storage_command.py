"""`headwater storage` beside a running coordinator and after it."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.postgresql import PostgresqlServer
from tests.system.fleet import FleetFactory
from tests.system.processes import Output, eventually, run
from tests.system.test_full_disk import fill, small_disk


def storage(data: Path, command: str, *options: str, code: int = 0) -> Output:
    """A command on a data directory; checks its exit code."""
    done = run("storage", *command.split(), "--data-directory", str(data), *options)
    assert done.code == code, done
    assert "Traceback" not in done.out + done.err
    return done


def contents(folder: Path) -> dict[Path, bytes | None]:
    """Every file with its bytes, and every folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(done: Output, *words: str) -> None:
    assert len(done.err.strip().splitlines()) == 1, done.err
    assert all(word in done.err for word in words), done.err


@pytest.fixture(params=["sqlite", "postgresql"])
def new_database(request: pytest.FixtureRequest) -> Callable[[], tuple[str, ...]]:
    """Options that name a new database: none for SQLite in the data directory."""
    if request.param == "sqlite":
        return lambda: ()
    server: PostgresqlServer = request.getfixturevalue("postgresql_server")
    return lambda: ("--database", server.create_database())


def test_beside_a_running_coordinator(
    new_fleet: FleetFactory, new_database: Callable[[], tuple[str, ...]]
) -> None:
    """Verify, status and collect while rounds commit: nothing is ever wrong, and nothing that the
    job needs is removed."""
    fleet, database = new_fleet(), new_database()
    fleet.serve(*database)
    fleet.client("ada")
    fleet.client("bob")
    job = fleet.submit(count=100_000)
    eventually(lambda: len(fleet.rounds(job)) > 3, "some rounds")
    for _ in range(3):
        before = len(fleet.rounds(job))
        assert "nothing wrong" in storage(fleet.data, "verify", *database).out
        removed = storage(fleet.data, "collect", "--keep-update-rounds", "0", *database).out
        assert re.match("[1-9][0-9]* updates are kept no longer; removed [1-9]", removed), removed
        eventually(lambda n=before: len(fleet.rounds(job)) > n, "a further round")  # type: ignore[misc]
    seen = json.loads(storage(fleet.data, "status", "--json", *database).out)
    assert seen["blobs"]["weights"]["count"] >= 4
    assert [one["job"] for one in seen["kept"]] == [job]
    shown = storage(fleet.data, "status", *database).out
    assert "free disk" in shown and "as the coordinator says" in shown
    assert {one.state for one in fleet.rounds(job)[:-1]} == {"committed"}
    assert fleet.serving.stop() == 0
    assert "Traceback" not in fleet.serving.text
    assert "nothing wrong" in storage(fleet.data, "verify", *database).out


def test_a_backup_of_a_running_coordinator_is_restored(
    new_fleet: FleetFactory, new_database: Callable[[], tuple[str, ...]], tmp_path: Path
) -> None:
    """A backup in the middle of a round is sound, and a coordinator that starts on it finishes the
    job with the same clients, to the same weights, without asking for the held update again."""
    fleet, place, gate = new_fleet(), tmp_path / "backups" / "monday", tmp_path / "gate"
    database = new_database()
    fleet.serve("--lease-seconds", "20", *database)
    fleet.client("fast")
    fleet.gated_client("gated", gate, "train")
    fleet.finish(fleet.submit(count=2))
    gate.touch()
    job = fleet.submit(count=3)
    accepted = fleet.wait_row(job, "fast", "accepted")
    assert "nothing wrong" in storage(fleet.data, f"backup {place}", *database).out
    seen = storage(place, "verify").out
    assert seen.startswith("4 rounds of 2 jobs") and "nothing wrong" in seen
    gate.unlink()
    fleet.finish(job)
    digests = fleet.digests(job)
    fleet.serving.kill()
    shutil.rmtree(fleet.data)
    shutil.copytree(place, fleet.data)
    if database:
        database = new_database()
        copied = run("db", "copy", f"sqlite:///{place / 'headwater.db'}", database[1])
        assert copied.code == 0, copied
    fleet.serve("--lease-seconds", "20", *database)
    assert "1 updates held, 1 awaited" in fleet.serving.text
    fleet.finish(job)
    row = fleet.ledger(job)["fast"]
    assert (row.assignment_id, row.ended_at) == (accepted.assignment_id, accepted.ended_at)
    assert fleet.digests(job) == digests
    fleet.serving.stop()
    assert "nothing wrong" in storage(fleet.data, "verify", *database).out


def test_a_backup_to_a_full_disk(new_fleet: FleetFactory, tmp_path: Path) -> None:
    """One line, nothing left, and the same command works once there is space."""
    fleet = new_fleet()
    fleet.serve()
    with small_disk(tmp_path / "disk", 4) as disk:
        ballast = fill(disk)
        done = storage(fleet.data, f"backup {disk / 'backup'}", code=3)
        refused(done, "no space is left", str(disk))
        ballast.unlink()
        storage(fleet.data, f"backup {disk / 'backup'}")
        again = storage(fleet.data, f"backup {disk / 'backup'}", code=2)
        refused(again, "backup is not empty: name a new folder")


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
    before = contents(fleet.data)
    lines = storage(fleet.data, "verify", code=1).out.splitlines()
    assert contents(fleet.data) == before
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
