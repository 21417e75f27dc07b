"""What both databases share: a writer thread, reader threads, and the check of the schema."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from headwater.errors import UnavailableError
from storage import migrate
from storage.database import Database
from storage.failures import translate
from storage.writer import Writer

T = TypeVar("T")

READER_THREADS = 4


class PooledDatabase(Database):
    """A database over one engine that writes and one that reads."""

    def __init__(self, url: str, name: str, *, writes: Engine, reads: Engine, create: bool) -> None:
        self._name = name
        self._write_engine = writes
        self._read_engine = reads
        try:
            migrate.ready(writes, url, create=create)
        except BaseException as error:
            self._dispose()
            raised = translate(error, name)
            raise raised from (None if raised is error else error)
        self._writer = Writer(writes, self._prepare_write, name)
        self._readers = ThreadPoolExecutor(READER_THREADS, thread_name_prefix="database-reader")

    async def write(self, work: Callable[[Session], T]) -> T:
        """See `Database.write`."""
        return await asyncio.wrap_future(self._writer.submit(work))

    def write_now(self, work: Callable[[Session], T]) -> T:
        """See `Database.write_now`."""
        return self._writer.submit(work).result()

    async def read(self, work: Callable[[Session], T]) -> T:
        """See `Database.read`."""
        try:
            future = self._readers.submit(self.read_now, work)
        except RuntimeError:
            raise UnavailableError(f"{self._name} is closed") from None
        return await asyncio.wrap_future(future)

    def read_now(self, work: Callable[[Session], T]) -> T:
        """See `Database.read_now`."""
        try:
            with Session(self._read_engine, expire_on_commit=False) as session:
                return work(session)
        except Exception as error:
            raised = translate(error, self._name)
            if raised is error:
                raise
            raise raised from error

    def close(self) -> None:
        """See `Database.close`."""
        self._writer.close()
        self._readers.shutdown(wait=True)
        self._dispose()

    def _dispose(self) -> None:
        self._read_engine.dispose()
        self._write_engine.dispose()

    def _prepare_write(self, connection: Connection) -> None:
        """Run first in every write transaction."""
