"""The contract of `Database`, over both databases."""

import asyncio
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import MetaData, func, insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from headwater.errors import (
    ConflictError,
    HeldError,
    SchemaVersionError,
    UnavailableError,
    UsageError,
)
from storage import events, migrate
from storage.blob_directory import BlobDirectory
from storage.database import Database, open_database
from storage.schema import REVISION, Base, Event
from tests.storage.conftest import Databases
from tests.storage.stored_history import make_history
from tests.storage.world import START, World

ROOT = Path(__file__).parents[2]


def note(message: str) -> Callable[[Session], str]:
    def work(session: Session) -> str:
        events.record(session, kind="test.noted", message=message, now=START)
        return message

    return work


def run(statement: str) -> Callable[[Session], None]:
    def work(session: Session) -> None:
        session.execute(text(statement))

    return work


def all_rows(session: Session) -> dict[str, list[dict[str, Any]]]:
    return {
        table.name: [
            dict(row)
            for row in session.execute(select(table).order_by(*table.primary_key)).mappings()
        ]
        for table in Base.metadata.sorted_tables
    }


def messages(session: Session) -> list[str]:
    return list(session.scalars(select(Event.message).order_by(Event.id)))


def python(code: str, *arguments: str) -> "subprocess.Popen[str]":
    """Another process with this code, over the same source tree."""
    path = f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'proto')!r}]\n"
    return subprocess.Popen(
        [sys.executable, "-c", path + code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


class TestDatabase:
    async def test_a_write_is_seen_by_the_next_read(self, database: Database) -> None:
        assert await database.write(note("one")) == "one"
        assert await database.read(messages) == ["one"]

    async def test_a_failing_function_in_a_group_fails_alone(self, database: Database) -> None:
        """All wait behind one that blocks, so that they share a transaction."""
        entered, go_on = threading.Event(), threading.Event()

        def block(session: Session) -> None:
            entered.set()
            assert go_on.wait(30)

        def fail(session: Session) -> None:
            note("never")(session)
            session.flush()
            raise ConflictError("no")

        def break_a_rule(session: Session) -> None:
            note("never")(session)
            session.execute(text("INSERT INTO plan_members VALUES ('p', 'n', 'b')"))

        blocked = asyncio.ensure_future(database.write(block))
        assert await asyncio.to_thread(entered.wait, 30)
        group: list[Callable[[Session], object]] = [
            note("one"),
            fail,
            note("two"),
            break_a_rule,
            note("three"),
        ]
        writes = [asyncio.ensure_future(database.write(work)) for work in group]
        await asyncio.sleep(0)
        go_on.set()
        results = await asyncio.gather(blocked, *writes, return_exceptions=True)
        assert results[1] == "one" and results[3] == "two" and results[5] == "three"
        assert isinstance(results[2], ConflictError) and isinstance(results[4], IntegrityError)
        assert await database.read(messages) == ["one", "two", "three"]

    async def test_a_cancelled_write_harms_nobody(self, database: Database) -> None:
        write = asyncio.ensure_future(database.write(note("perhaps")))
        await asyncio.sleep(0)
        write.cancel()
        await database.write(note("one"))
        assert "one" in await database.read(messages)

    def test_a_function_that_reads_and_then_writes_is_not_overtaken(
        self, database: Database
    ) -> None:
        def count_up(session: Session) -> None:
            count = session.scalar(select(func.count()).select_from(Event))
            note(str(count))(session)

        threads = [
            threading.Thread(target=lambda: [database.write_now(count_up) for _ in range(10)])
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert database.read_now(messages) == [str(number) for number in range(80)]

    def test_a_read_sees_one_snapshot(self, database: Database) -> None:
        def read(session: Session) -> tuple[list[str], list[str]]:
            before = messages(session)
            database.write_now(note("meanwhile"))
            return before, messages(session)

        assert database.read_now(read) == ([], [])
        assert database.read_now(messages) == ["meanwhile"]

    def test_a_read_cannot_write(self, database: Database) -> None:
        def work(session: Session) -> None:
            note("never")(session)
            session.commit()

        with pytest.raises(Exception, match=r"(?i)read-?only"):
            database.read_now(work)
        assert database.read_now(messages) == []

    async def test_a_closed_database_says_so(self, database: Database) -> None:
        database.close()
        database.close()
        with pytest.raises(UnavailableError, match="is closed"):
            await database.write(note("never"))
        with pytest.raises(UnavailableError, match="is closed"):
            await database.read(messages)

    def test_closing_finishes_what_waits(self, url: str) -> None:
        async def write_and_close() -> None:
            with open_database(url) as database:
                writes = [asyncio.ensure_future(database.write(note(str(n)))) for n in range(50)]
                await asyncio.sleep(0)
            await asyncio.gather(*writes)

        asyncio.run(write_and_close())
        with open_database(url) as database:
            assert len(database.read_now(messages)) == 50

    def test_processes_write_at_once_and_none_fails(self, url: str) -> None:
        code = """
import sys, threading
from storage.database import open_database
from storage import events
from datetime import datetime, UTC
database = open_database(sys.argv[1])
def work(session):
    events.record(session, kind="test.noted", message=sys.argv[2], now=datetime.now(UTC))
def many():
    for _ in range(20):
        database.write_now(work)
threads = [threading.Thread(target=many) for _ in range(5)]
print("ready", flush=True); sys.stdin.readline()
[t.start() for t in threads]; [t.join() for t in threads]
database.close()
"""
        processes = [python(code, url, name) for name in ("one", "two")]
        for process in processes:
            assert process.stdout and process.stdout.readline() == "ready\n"
        for process in processes:
            process.communicate("go\n")
            assert process.returncode == 0
        with open_database(url) as database:
            written = database.read_now(messages)
        assert (written.count("one"), written.count("two")) == (100, 100)

    def test_kill_keeps_what_was_acknowledged(self, url: str) -> None:
        code = """
import sys
from storage.database import open_database
from storage import events
from datetime import datetime, UTC
database = open_database(sys.argv[1])
number = 0
while True:
    number += 1
    def work(session):
        events.record(session, kind="t", message=str(number), now=datetime.now(UTC))
    database.write_now(work)
    print(number, flush=True)
"""
        process = python(code, url)
        assert process.stdout
        while process.stdout.readline() != "20\n":
            pass
        process.kill()
        acknowledged = [20, *map(int, process.communicate()[0].split("\n")[:-1])]
        with open_database(url) as database:
            kept = [int(message) for message in database.read_now(messages)]
        assert kept == list(range(1, len(kept) + 1))
        assert acknowledged[-1] <= kept[-1] <= acknowledged[-1] + 1

    def test_a_second_holder_is_told_who_holds_it(self, url: str) -> None:
        code = """
import sys
from storage.database import open_database
database = open_database(sys.argv[1])
hold = database.hold("headwater serve on 127.0.0.1:7070")
print("held", flush=True); sys.stdin.readline()
"""
        process = python(code, url)
        assert process.stdout and process.stdout.readline() == "held\n"
        with open_database(url) as database:
            with pytest.raises(HeldError) as refused:
                database.hold("another")
            database.write_now(note("a command line may still write"))
            process.kill()
            process.communicate()
            message = str(refused.value)
            assert "is in use by headwater serve on 127.0.0.1:7070" in message
            assert f"process {process.pid} on " in message and "stop it first" in message
            with database.hold("another"):
                database.write_now(note("and so may its holder"))
            database.hold("once more").release()

    def test_an_empty_database_is_filled_only_when_asked(self, databases: Databases) -> None:
        url = databases.empty()
        with pytest.raises(SchemaVersionError, match=r"`headwater db upgrade --database .*`"):
            open_database(url)
        open_database(url, create=True).close()
        assert migrate.check(url) == REVISION

    def test_several_may_fill_an_empty_database_at_once(self, databases: Databases) -> None:
        url = databases.empty()
        with ThreadPoolExecutor(4) as threads:
            for opened in [threads.submit(open_database, url, create=True) for _ in range(4)]:
                opened.result().close()
        assert migrate.check(url) == REVISION

    def test_another_schema_version_is_refused_with_the_command(self, databases: Databases) -> None:
        url = databases.empty()
        with open_database(url, create=True) as database:
            change = "UPDATE alembic_version SET version_num = '{}'"
            database.write_now(run(change.format("0000")))
            with pytest.raises(SchemaVersionError, match="headwater db upgrade --database"):
                open_database(url, create=True)
            database.write_now(run(change.format("9999")))
            with pytest.raises(SchemaVersionError, match=f"newer than {REVISION} of this program"):
                open_database(url)
            with pytest.raises(SchemaVersionError, match=f"newer than {REVISION} of this program"):
                migrate.upgrade(url)

    def test_tables_of_another_program_are_refused(self, databases: Databases) -> None:
        url = databases.empty()
        with open_database(url, create=True) as database:
            database.write_now(run("DROP TABLE alembic_version"))
        with pytest.raises(SchemaVersionError, match="tables of another program"):
            open_database(url, create=True)

    def test_the_migrations_make_the_declared_tables(self, databases: Databases) -> None:
        url = databases.empty()
        assert migrate.upgrade(url) == REVISION
        assert migrate.upgrade(url) == REVISION
        assert migrate.check(url) == REVISION

    def test_a_database_of_the_first_version_is_upgraded_with_its_rows(
        self, databases: Databases, sqlite_template: Path, tmp_path: Path
    ) -> None:
        """Alembic is asked for the first version, and rows of today are put in without the rest."""
        url = databases.empty()
        made = tmp_path / "made.db"
        with open_database(f"sqlite:///{shutil.copy(sqlite_template, made)}") as source:
            make_history(World(source), BlobDirectory(tmp_path / "blobs"))
            rows = source.read_now(all_rows)
        engine = migrate._engine(url)
        with engine.begin() as connection:
            command.upgrade(migrate._configuration(connection), "0001")
            first = MetaData()
            first.reflect(connection)
            for name, table in rows.items():
                known = first.tables[name].columns.keys()
                # What came later has no value yet.
                rows[name] = [{key: row[key] if key in known else None for key in row}
                              for row in table]  # fmt: skip
                fit = [{key: row[key] for key in known} for row in table]
                if fit:
                    connection.execute(insert(Base.metadata.tables[name]), fit)
        engine.dispose()
        assert migrate.upgrade(url) == migrate.check(url) == REVISION
        with open_database(url) as upgraded:
            assert upgraded.read_now(all_rows) == rows

    def test_check_tells_tables_that_differ(self, databases: Databases) -> None:
        url = databases.empty()
        with open_database(url, create=True) as database:
            database.write_now(run("ALTER TABLE events ADD COLUMN extra TEXT"))
        with pytest.raises(SchemaVersionError, match="extra"):
            migrate.check(url)


@pytest.mark.parametrize("url", ["mysql://host/name", "headwater.db", ""])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(UsageError, match="use sqlite:///PATH or postgresql://"):
        open_database(url)


def test_messages_hide_passwords() -> None:
    with pytest.raises(UsageError) as refused:
        open_database("mysql://user:secret@host/name")
    assert "secret" not in str(refused.value) and "mysql://user:***@host" in str(refused.value)
