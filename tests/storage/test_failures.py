"""Disks that are full, databases that go away, and holders that were overtaken."""

import asyncio
import errno
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import TextClause, text
from sqlalchemy.orm import Session

from headwater.errors import (
    DiskFullError,
    HeldError,
    SchemaVersionError,
    StorageError,
    UnavailableError,
    UsageError,
)
from storage import migrate, sqlite, writer
from storage.database import Database, open_database
from storage.hold import hold_directory
from storage.postgresql import PostgresqlDatabase
from tests.postgresql import PostgresqlServer, running_server
from tests.storage.test_contract import messages, note


@pytest.fixture
def small_database(tmp_path: Path) -> Iterator[Database]:
    """A database that may grow by a few pages only: what SQLite says of a full disk."""
    with open_database(f"sqlite:///{tmp_path / 'small.db'}", create=True) as database:
        pages = database.read_now(lambda s: s.scalar(text("PRAGMA page_count")))
        database.write_now(lambda s: s.execute(text(f"PRAGMA max_page_count={pages + 10}")).all())
        yield database


def test_a_full_disk_fails_only_the_write_that_filled_it(small_database: Database) -> None:
    """Together with others in one transaction: they are kept, and later ones too."""
    entered, go_on = threading.Event(), threading.Event()

    def block(session: Session) -> None:
        entered.set()
        assert go_on.wait(30)

    async def write_all() -> list[object]:
        blocked = asyncio.ensure_future(small_database.write(block))
        assert await asyncio.to_thread(entered.wait, 30)
        group = [note("one"), note("x" * 200_000), note("two")]
        writes = [asyncio.ensure_future(small_database.write(work)) for work in group]
        await asyncio.sleep(0)
        go_on.set()
        return list(await asyncio.gather(blocked, *writes, return_exceptions=True))

    results = asyncio.run(write_all())
    assert (results[1], results[3]) == ("one", "two")
    assert isinstance(results[2], DiskFullError)
    assert "no space is left for the database" in str(results[2])
    assert "small.db: free some, then repeat" in str(results[2])
    small_database.write_now(note("three"))
    assert small_database.read_now(messages) == ["one", "two", "three"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_file_system_that_is_really_full(tmp_path: Path) -> None:
    place = tmp_path / "small"
    place.mkdir()
    if os.system(f"mount -t tmpfs -o size=1m tmpfs {place} 2>/dev/null"):
        pytest.skip("this sandbox does not let root mount a file system")
    try:
        with open_database(f"sqlite:///{place / 'a.db'}", create=True) as database:
            database.write_now(note("one"))
            with pytest.raises(DiskFullError, match="no space is left"):
                database.write_now(note("x" * 1_000_000))
            database.write_now(note("two"))
            assert database.read_now(messages) == ["one", "two"]
    finally:
        os.system(f"umount {place}")


def test_a_locked_database_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_SECONDS", 0.01)
    url = f"sqlite:///{tmp_path / 'headwater.db'}"
    with open_database(url, create=True) as database, open_database(url) as other:

        def hold_the_lock(session: Session) -> None:
            with pytest.raises(StorageError, match="is locked by another process for too long"):
                other.write_now(note("never"))

        database.write_now(hold_the_lock)
        other.write_now(note("one"))


def test_a_broken_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "headwater.db"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(StorageError, match=r"headwater.db.*not a database"):
        open_database(f"sqlite:///{path}")


def test_files_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(SchemaVersionError, match=r"there is no database at .*headwater db upgrade"):
        open_database(f"sqlite:///{tmp_path / 'none.db'}")
    assert not (tmp_path / "none.db").exists()
    with pytest.raises(StorageError, match=r"the folder .* of the database does not exist"):
        open_database(f"sqlite:///{tmp_path / 'none' / 'a.db'}", create=True)
    for url in ("sqlite://", "sqlite:///:memory:"):
        with pytest.raises(UsageError, match="names no file: use sqlite:///PATH"):
            open_database(url, create=True)


def test_writes_that_wait_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAXIMUM_WAITING", 2)
    entered, go_on = threading.Event(), threading.Event()

    def block(session: Session) -> None:
        entered.set()
        assert go_on.wait(30)

    async def write_all(database: Database) -> None:
        blocked = asyncio.ensure_future(database.write(block))
        assert await asyncio.to_thread(entered.wait, 30)
        waiting = [asyncio.ensure_future(database.write(note(str(n)))) for n in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match=r"2 writes to .* are waiting"):
            await database.write(note("never"))
        go_on.set()
        await asyncio.gather(blocked, *waiting)

    with open_database(f"sqlite:///{tmp_path / 'a.db'}", create=True) as database:
        asyncio.run(write_all(database))
        assert database.read_now(messages) == ["0", "1"]


def test_durability_is_set_on_every_connection(tmp_path: Path) -> None:
    with open_database(f"sqlite:///{tmp_path / 'a.db'}", create=True) as database:
        wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
        for name, value in wanted.items():
            question = text(f"PRAGMA {name}")
            for ask in (database.write_now, database.read_now):
                assert ask(_ask(question)) == value


def _ask(question: TextClause) -> Callable[[Session], object]:
    return lambda s: s.scalar(question)


def test_a_data_directory_is_held_by_one(tmp_path: Path) -> None:
    with hold_directory(tmp_path, "headwater serve"):
        with pytest.raises(HeldError) as refused:
            hold_directory(tmp_path, "another")
        assert f"the data directory {tmp_path} is in use by headwater serve" in str(refused.value)
        assert f"process {os.getpid()} on" in str(refused.value)
        (tmp_path / "hold").write_text("")
        with pytest.raises(HeldError, match="in use by another process"):
            hold_directory(tmp_path, "another")
    hold_directory(tmp_path, "another").release()


@pytest.fixture
def own_server() -> Iterator[PostgresqlServer]:
    """A server that the test may kill."""
    with running_server() as server:
        yield server


def test_postgresql_killed_and_started_again(own_server: PostgresqlServer) -> None:
    url = own_server.create_database()
    with open_database(url, create=True) as database:
        hold = database.hold("headwater serve")
        database.write_now(note("one"))
        assert database.read_now(messages) == ["one"]
        own_server.stop(signal.SIGKILL)
        for ask in (database.write_now, database.read_now):
            with pytest.raises(StorageError, match=r"the database test_1 .* cannot be reached"):
                ask(messages)
        own_server.start()
        database.write_now(note("two"))
        assert database.read_now(messages) == ["one", "two"]
        hold.release()


def test_a_holder_that_was_overtaken_writes_no_more(postgresql_server: PostgresqlServer) -> None:
    url = postgresql_server.create_database()
    migrate.upgrade(url)
    with open_database(url) as former, open_database(url) as taker:
        hold = former.hold("the former")
        former.write_now(note("one"))
        assert isinstance(former, PostgresqlDatabase)
        # Its session breaks, as when the network did; the server frees its lock.
        postgresql_server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_locks "
            "WHERE locktype = 'advisory' AND granted AND mode = 'ExclusiveLock'"
        )
        with taker.hold("the taker"):
            with pytest.raises(
                HeldError, match=r"in use by the taker .*took over from this process"
            ):
                former.write_now(note("never"))
            taker.write_now(note("two"))
            hold.release()
        assert taker.read_now(messages) == ["one", "two"]


def test_postgresql_commits_are_synchronous(postgresql_server: PostgresqlServer) -> None:
    url = postgresql_server.create_database()
    name = url.split("/")[3].split("?")[0]
    postgresql_server.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    with open_database(url, create=True) as database:
        assert database.write_now(lambda s: s.scalar(text("SHOW synchronous_commit"))) == "on"


def test_a_server_that_is_not_there_is_named() -> None:
    with pytest.raises(StorageError, match=r"the database name on 127.0.0.1 .*cannot be reached"):
        open_database("postgresql://postgres@127.0.0.1:1/name")


def test_a_full_disk_under_postgresql_is_told_by_its_code() -> None:
    from psycopg.errors import DiskFull
    from sqlalchemy.exc import OperationalError

    from storage.failures import translate

    error = translate(OperationalError("INSERT", {}, DiskFull("could not write")), "the database x")
    assert isinstance(error, DiskFullError)
    full = translate(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "the database x")
    assert isinstance(full, DiskFullError)
