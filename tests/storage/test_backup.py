"""Backups of a live database and its blobs, and copies of one database to another kind."""

import errno
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from headwater import durable_files, steps
from headwater.errors import ConflictError, DiskFullError, UsageError
from storage import backup
from storage.backup import back_up
from storage.blob_checks import needed_blobs
from storage.blob_directory import BlobDirectory
from storage.collect import collect
from storage.copying import copy_database
from storage.database import Database, open_database
from storage.schema import Base, Claim
from storage.verify import verify
from tests.postgresql import PostgresqlServer
from tests.storage.stored_history import Author, StoredHistory, make_history
from tests.storage.world import World


@pytest.fixture
def store(tmp_path: Path) -> BlobDirectory:
    return BlobDirectory(tmp_path / "blobs")


@pytest.fixture
def made(world: World, store: BlobDirectory) -> StoredHistory:
    return make_history(world, store)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "backups" / "monday"


def rows(session: Session) -> dict[str, list[Any]]:
    """All that a database holds; NaN, which is not equal to itself, as a word."""
    tables = [one for one in Base.metadata.sorted_tables if one is not Claim.__table__]
    return {
        table.name: [
            tuple("nan" if one != one else one for one in row)
            for row in session.execute(select(table).order_by(*table.primary_key))
        ]
        for table in tables
    }


def kept(place: Path) -> dict[str, int]:
    """The blobs of a backup, with their inodes."""
    copies = BlobDirectory(place / "blobs")
    return {digest: copies.path(digest).stat().st_ino for digest in copies.digests()}


def test_a_backup_has_all_rows_and_the_blobs_that_they_need(
    world: World, store: BlobDirectory, made: StoredHistory, place: Path
) -> None:
    stray = store.write(b"stray")
    report = back_up(world.database, store, place)
    assert report == verify(world.database, store) and report.findings == []
    assert sorted(path.name for path in place.iterdir()) == ["blobs", "headwater.db"]
    assert kept(place).keys() == world.read(needed_blobs).keys()
    assert store.exists(stray)
    with open_database(f"sqlite:///{place / 'headwater.db'}") as database:
        assert database.read_now(rows) == world.read(rows)


def test_blobs_are_linked_where_they_can_be(
    world: World, store: BlobDirectory, made: StoredHistory, place: Path
) -> None:
    back_up(world.database, store, place)
    for digest, inode in kept(place).items():
        assert store.path(digest).stat().st_ino == inode


def test_blobs_are_copied_to_another_file_system(
    world: World,
    store: BlobDirectory,
    made: StoredHistory,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    store.delete(made.weights)
    (finding,) = back_up(world.database, store, place).findings
    assert finding.digest == made.weights
    for digest, inode in kept(place).items():
        assert store.path(digest).stat().st_ino != inode


def test_updates_that_are_collected_meanwhile_are_in_no_backup(
    world: World,
    store: BlobDirectory,
    made: StoredHistory,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between the first snapshot and the copying of its blobs; what was copied goes again."""
    snapshots = []
    take = backup.take_snapshot

    def take_and_collect(database: Database, path: Path) -> None:
        take(database, path)
        snapshots.append(path)
        if len(snapshots) == 1:
            keep_one = BlobDirectory(place / "blobs").path(made.update)
            durable_files.make_folder(keep_one.parent)
            os.link(store.path(made.update), keep_one)
            collect(world.database, store, now=datetime.now(UTC), keep_update_rounds=0)

    monkeypatch.setattr(backup, "take_snapshot", take_and_collect)
    assert back_up(world.database, store, place).findings == []
    assert len(snapshots) == 2
    assert made.update not in kept(place)
    assert kept(place).keys() == world.read(needed_blobs).keys()


def test_a_lost_blob_is_told_and_the_backup_is_kept(
    world: World, store: BlobDirectory, made: StoredHistory, place: Path
) -> None:
    store.delete(made.update)
    (finding,) = back_up(world.database, store, place).findings
    assert finding.digest == made.update
    with open_database(f"sqlite:///{place / 'headwater.db'}") as database:
        assert verify(database, BlobDirectory(place / "blobs")).findings == [finding]


def test_a_destination_that_is_not_empty(
    world: World, store: BlobDirectory, made: StoredHistory, place: Path
) -> None:
    place.mkdir(parents=True)
    mine = place / "mine"
    mine.write_text("mine")
    with pytest.raises(UsageError, match=f"{place} is not empty"):
        back_up(world.database, store, place)
    with pytest.raises(UsageError, match=f"{mine} is no folder"):
        back_up(world.database, store, mine)
    assert [path.name for path in place.iterdir()] == ["mine"]
    mine.unlink()
    assert back_up(world.database, store, place).findings == []


def test_a_backup_has_its_database_only_when_all_else_is_durable(
    world: World, store: BlobDirectory, made: StoredHistory, place: Path
) -> None:
    """A kill or a power cut leaves a folder without a database, or a whole backup."""
    database = place / "headwater.db"
    passed: list[tuple[str, object]] = []

    def look(step: str, subject: object) -> None:
        if ("rename", database) not in passed:
            assert not database.exists()
        passed.append((step, subject))

    with steps.observed(look):
        back_up(world.database, store, place)
    assert database.exists()
    named = passed.index(("rename", database))
    assert passed[named + 1 :] == [("sync folder", place)]
    assert ("sync", place / "headwater.db.part") in passed[:named]
    for digest in kept(place):
        path = BlobDirectory(place / "blobs").path(digest)
        linked = passed.index(("link", path))
        assert ("sync folder", path.parent) in passed[linked:named]


def test_a_backup_that_fails_leaves_nothing(
    world: World,
    store: BlobDirectory,
    made: StoredHistory,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(temporary: Path, path: Path) -> None:
        raise DiskFullError("no space is left")

    with monkeypatch.context() as patched:
        patched.setattr(durable_files, "adopt", fail)
        with pytest.raises(DiskFullError):
            back_up(world.database, store, place)
    assert list(place.iterdir()) == []
    assert back_up(world.database, store, place).findings == []


@pytest.fixture(params=["sqlite", "postgresql"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database that is not there yet, or has no tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'copy.db'}"
    server: PostgresqlServer = request.getfixturevalue("postgresql_server")
    return server.create_database()


def test_a_copy_has_every_row_and_goes_on_from_there(
    world: World, store: BlobDirectory, made: StoredHistory, target: str
) -> None:
    for change in (
        "UPDATE metrics SET value = NULL WHERE id = 1",
        # PostgreSQL lists an updated row last: the first version, whose children come before it.
        "UPDATE model_versions SET size_bytes = size_bytes WHERE id = 1",
    ):
        world.write(lambda s, d=change: s.execute(text(d)))  # type: ignore[misc]
    count = copy_database(world.database, target)
    before = world.read(rows)
    assert count == sum(map(len, before.values()))
    with open_database(target) as database:
        copied = database.read_now(rows)
        assert copied == before
        other = World(database)
        author = Author(other, store)
        author.train(author.job("new"), 1)
        found = verify(database, store).findings
    assert [one.check for one in found] == ["metrics"]


def test_rows_are_copied_to_an_empty_database_only(
    world: World, made: StoredHistory, target: str
) -> None:
    copy_database(world.database, target)
    with open_database(target) as database:
        before = database.read_now(rows)
        with pytest.raises(ConflictError, match="has rows already"):
            copy_database(world.database, target)
        assert database.read_now(rows) == before
