"""The contract of the database, and the function that opens one by URL."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self, TypeVar

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Session

from headwater.errors import UsageError

T = TypeVar("T")


class Hold(Protocol):
    """Exclusive use of a database or directory, ended by `release` or by the process's end."""

    def release(self) -> None:
        """Give the claim up. A second call does nothing."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...


class Database(ABC):
    """A database at the current schema version. Safe to call from any thread and any loop.

    Writes are serial: no two functions given to `write`, in any process, overlap in time, so a
    function may read and then write without a race. Each runs in a savepoint: all of it is kept,
    or nothing. It may be run a second time when a neighbour in its transaction breaks the
    connection, so it has no effect but on its session, and it returns records, never rows.

    Reads see one consistent snapshot that holds at least all writes that returned before.

    Errors of both: whatever the function raises, and
        DiskFullError: no space is left.
        StorageError: the database is locked, lost or broken; nothing of this call was kept, except
            that a connection lost during a commit leaves that unknown.
        HeldError: (write) this process held the database and another has taken it over.
        UnavailableError: (write) too many writes are waiting, or the database is closed.
    """

    @abstractmethod
    async def write(self, work: Callable[[Session], T]) -> T:
        """Run `work` on the writer thread. What it wrote survives power loss once this returns."""

    @abstractmethod
    async def read(self, work: Callable[[Session], T]) -> T:
        """Run `work` on a reader thread with a connection of its own, which refuses to write."""

    @abstractmethod
    def write_now(self, work: Callable[[Session], T]) -> T:
        """The same as `write`, blocking. Never on an event loop."""

    @abstractmethod
    def read_now(self, work: Callable[[Session], T]) -> T:
        """The same as `read`, blocking. Never on an event loop."""

    @abstractmethod
    def hold(self, holder: str) -> Hold:
        """Claim the database for one coordinator; others may still read, and write by command line.

        `holder` says who, for the message that others get.

        Raises:
            HeldError: another process has it; the message has its name, host and process id.
        """

    @abstractmethod
    def close(self) -> None:
        """Finish the writes that wait, then drop all connections. A second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_database(url: str, *, create: bool = False) -> Database:
    """Open the database at `url` (`sqlite:///PATH` or `postgresql://USER@HOST/NAME`).

    `create`: bring a database without any table to the current schema version first.

    Raises:
        UsageError: the URL is of no kind that is known here.
        SchemaVersionError: the schema is of another version; the message names the command.
        StorageError: it cannot be reached.
    """
    from storage.postgresql import PostgresqlDatabase
    from storage.sqlite import SqliteDatabase

    kinds: dict[str, Callable[..., Database]] = {
        "sqlite": SqliteDatabase,
        "postgresql": PostgresqlDatabase,
    }
    backend = database_kind(url)
    return kinds[backend](url, create=create)


def shown(url: str) -> str:
    """A database URL as messages show it: without its password."""
    try:
        return make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        return url


def database_kind(url: str) -> str:
    """`sqlite` or `postgresql`.

    Raises:
        UsageError: neither of them.
    """
    try:
        backend = make_url(url).get_backend_name()
    except ArgumentError:
        backend = ""
    if backend not in ("sqlite", "postgresql"):
        raise UsageError(
            f"{shown(url)!r} is no database URL: use sqlite:///PATH or postgresql://USER@HOST:PORT/NAME"
        )
    return backend
