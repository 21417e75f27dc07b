"""The database of a deployment: PostgreSQL through psycopg 3, with synchronous commits."""

import os
import socket
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

from sqlalchemy import Connection, Engine, create_engine, event, select, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from headwater.errors import HeldError, StorageError, require
from storage.failures import translate
from storage.hold import refusal
from storage.pooled import READER_THREADS, PooledDatabase
from storage.schema import WRITE_KEY, Claim

HOLD_KEY = WRITE_KEY + 1
CONNECT_SECONDS = 10
HOLD_WAIT_MILLISECONDS = 2_000
LOCK_NOT_AVAILABLE = "55P03"


class PostgresqlDatabase(PooledDatabase):
    """`postgresql://USER@HOST:PORT/NAME`.

    Every write transaction takes one advisory lock, so that writes are serial over all processes.
    The holder's lock is a session's; should its connection break, another process may take over,
    and the epoch that it raises makes the writes of the former holder fail.
    """

    def __init__(self, url: str, *, create: bool = False) -> None:
        parsed = make_url(url)
        self._epoch: int | None = None
        super().__init__(
            url,
            f"the database {parsed.database} on {parsed.host or 'this machine'}",
            writes=postgresql_engine(url),
            reads=postgresql_engine(url, read_only=True),
            create=create,
        )

    def hold(self, holder: str) -> "AdvisoryHold":
        """See `Database.hold`: a session's advisory lock, and a new epoch."""
        try:
            connection = _hold_connection(self._write_engine)
        except DBAPIError as error:
            raise translate(error, self._name) from error
        try:
            # The server may need a moment to see that a former holder was killed.
            connection.execute(text(f"SET lock_timeout = {HOLD_WAIT_MILLISECONDS}"))
            connection.execute(text(f"SELECT pg_advisory_lock({HOLD_KEY})"))
        except DBAPIError as error:
            connection.close()
            if getattr(error.orig, "sqlstate", "") != LOCK_NOT_AVAILABLE:
                raise translate(error, self._name) from error
            raise HeldError(self.read_now(lambda s: _refusal(s, self._name))) from None
        self._epoch = self.write_now(lambda s: _claim(s, holder))
        return AdvisoryHold(self, connection)

    def forget_hold(self) -> None:
        """Write from now on as one that does not hold the database."""
        self._epoch = None

    def _prepare_write(self, connection: Connection) -> None:
        connection.execute(text(f"SELECT pg_advisory_xact_lock({WRITE_KEY})"))
        if self._epoch is None:
            return
        epoch = connection.execute(select(Claim.epoch)).scalar_one()
        if epoch != self._epoch:
            taker = connection.execute(select(Claim.holder, Claim.host, Claim.pid)).one()
            raise HeldError(f"{refusal(self._name, *taker)}; it took over from this process")


class AdvisoryHold:
    """A PostgreSQL database held through a connection of its own."""

    def __init__(self, database: PostgresqlDatabase, connection: Connection) -> None:
        self._database = database
        self._connection = connection

    def release(self) -> None:
        """Give it up: the server ends the lock with the connection. A second call does nothing."""
        self._database.forget_hold()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def postgresql_engine(url: str, *, read_only: bool = False) -> Engine:
    """An engine whose commits are durable. Reads see one snapshot for a transaction."""
    require("psycopg", extra="coordinator", purpose="use PostgreSQL")
    engine = create_engine(
        make_url(url).set(drivername="postgresql+psycopg"),
        pool_size=READER_THREADS if read_only else 1,
        max_overflow=READER_THREADS,
        pool_pre_ping=True,
        connect_args={"connect_timeout": CONNECT_SECONDS, "application_name": "headwater"},
        isolation_level="REPEATABLE READ" if read_only else "READ COMMITTED",
        execution_options={"postgresql_readonly": read_only},
    )
    if not read_only:
        event.listen(engine, "connect", _make_durable)
    return engine


def _hold_connection(engine: Engine) -> Connection:
    """A connection outside the pool. The server drops it 25 s after its machine went away."""
    connection = engine.execution_options(isolation_level="AUTOCOMMIT").connect()
    connection.detach()
    for setting in ("idle = 10", "interval = 5", "count = 3"):
        connection.execute(text(f"SET tcp_keepalives_{setting}"))
    return connection


def _make_durable(connection: object, record: object) -> None:
    with connection.cursor() as cursor:  # type: ignore[attr-defined]
        cursor.execute("SET SESSION synchronous_commit = on")
        cursor.execute("SHOW synchronous_commit")
        (value,) = cursor.fetchone()
    connection.commit()  # type: ignore[attr-defined]
    if value != "on":
        raise StorageError(f"PostgreSQL keeps synchronous_commit = {value}: it must be on")


def _claim(session: Session, holder: str) -> int:
    claim = session.get(Claim, 1)
    if claim is None:
        claim = Claim(id=1, epoch=0)
        session.add(claim)
    claim.epoch += 1
    claim.holder, claim.host, claim.pid = holder, socket.gethostname(), os.getpid()
    claim.since = datetime.now(UTC)
    return claim.epoch


def _refusal(session: Session, subject: str) -> str:
    claim = session.get(Claim, 1)
    if claim is None:
        return refusal(subject, "another process", "a machine", "unknown")
    return refusal(subject, claim.holder, claim.host, claim.pid)
