"""The embedded database: one SQLite file, with a write-ahead log that is synced on every commit."""

import sqlite3
import time
from pathlib import Path

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.pool import QueuePool

from headwater.errors import SchemaVersionError, StorageError, UsageError
from storage.hold import FileHold
from storage.pooled import READER_THREADS, PooledDatabase

BUSY_SECONDS = 30.0
"""How long a write waits for another process's. A command line's write takes milliseconds."""


class SqliteDatabase(PooledDatabase):
    """`sqlite:///PATH`: several processes of one machine may use the file at once.

    Writes begin with BEGIN IMMEDIATE: a transaction that reads first and writes later would fail at
    once when another wrote in between, whatever the busy timeout says.
    """

    def __init__(self, url: str, *, create: bool = False) -> None:
        parsed = make_url(url)
        self.path = _path(parsed, url)
        if not create and not self.path.exists():
            raise SchemaVersionError(
                f"there is no database at {self.path}: `headwater serve` makes one, and so does "
                f"`headwater db upgrade --database {url}`"
            )
        if not self.path.parent.is_dir():
            raise StorageError(f"the folder {self.path.parent} of the database does not exist")
        super().__init__(
            url,
            f"the database {self.path}",
            writes=sqlite_engine(url),
            reads=sqlite_engine(url, read_only=True),
            create=create,
        )

    def hold(self, holder: str) -> FileHold:
        """See `Database.hold`: a lock on a file beside the database."""
        path = self.path.with_name(self.path.name + ".hold")
        return FileHold(path, holder, f"the database {self.path}")


def sqlite_engine(url: str, *, read_only: bool = False) -> Engine:
    """An engine whose connections are durable, check foreign keys, and begin as they should."""
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=READER_THREADS if read_only else 1,
        max_overflow=READER_THREADS,
        connect_args={"check_same_thread": False, "timeout": BUSY_SECONDS},
    )

    @event.listens_for(engine, "connect")
    def configure(connection: sqlite3.Connection, record: object) -> None:
        # The driver's own transaction control would begin late and deferred.
        connection.isolation_level = None
        _use_write_ahead_log(connection)
        for setting in ("synchronous=FULL", "fullfsync=ON", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {setting}")
        if read_only:
            connection.execute("PRAGMA query_only=ON")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")

    return engine


def _use_write_ahead_log(connection: sqlite3.Connection) -> None:
    """Switch a new file to WAL; one that is in WAL stays so.

    SQLite does not wait for its busy timeout here: of several processes that open a new file at
    once, all but one are told that it is locked, although each holds it for a moment only.
    """
    end = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > end:
                raise
            time.sleep(0.01)


def _path(parsed: URL, url: str) -> Path:
    if not parsed.database or parsed.database == ":memory:":
        raise UsageError(f"{url!r} names no file: use sqlite:///PATH")
    return Path(parsed.database)
