"""One thread that makes all writes of a database, several in one transaction when several wait.

A durable commit waits for the disk; while it does, further writes queue up, and the next
transaction takes them all (group commit). So one writer is never delayed on purpose, and many share
the price of one sync.
"""

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from headwater.errors import UnavailableError
from headwater.steps import reach
from storage.failures import first_failure, is_world_failure, translate

T = TypeVar("T")

MAXIMUM_BATCH = 256
MAXIMUM_WAITING = 10_000


@dataclass(frozen=True, slots=True)
class _Write:
    work: Callable[[Session], Any]
    future: Future[Any]


@dataclass(frozen=True, slots=True)
class _Outcome:
    value: Any = None
    error: BaseException | None = None


class _TransactionLostError(Exception):
    """The database failed under one function, so nothing in its transaction can be kept."""


class Writer:
    """Runs functions one after another on its own thread and commits them in groups.

    `prepare` runs first in every transaction; what it raises fails all of that transaction.
    """

    def __init__(self, engine: Engine, prepare: Callable[[Connection], None], name: str) -> None:
        self._engine = engine
        self._prepare = prepare
        self._name = name
        self._waiting: queue.Queue[_Write | None] = queue.Queue(MAXIMUM_WAITING)
        self._closing = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="database-writer", daemon=True)
        self._thread.start()

    def submit(self, work: Callable[[Session], T]) -> Future[T]:
        """Queue one function; the future ends once it is durable, or with why it is not.

        Raises:
            UnavailableError: the writer is closed, or its queue is full.
        """
        future: Future[T] = Future()
        with self._closing:
            if self._closed:
                raise UnavailableError(f"{self._name} is closed")
            try:
                self._waiting.put_nowait(_Write(work, future))
            except queue.Full:
                raise UnavailableError(
                    f"{MAXIMUM_WAITING} writes to {self._name} are waiting: its disk is too slow "
                    "or stuck"
                ) from None
        return future

    def close(self) -> None:
        """Finish what is queued, then end the thread."""
        with self._closing:
            first = not self._closed
            self._closed = True
        if first:
            self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while batch := self._next_batch():
            self._carry_out([write for write in batch if write is not None])
            if batch[-1] is None:
                return

    def _next_batch(self) -> list[_Write | None]:
        batch = [self._waiting.get()]
        while batch[-1] is not None and len(batch) < MAXIMUM_BATCH:
            try:
                batch.append(self._waiting.get_nowait())
            except queue.Empty:
                break
        return batch

    def _carry_out(self, batch: Sequence[_Write]) -> None:
        """Run a batch and resolve its futures, with whatever came of each."""
        writes = [write for write in batch if write.future.set_running_or_notify_cancel()]
        if not writes:
            return
        for write, outcome in zip(writes, self._outcomes(writes), strict=True):
            if outcome.error is None:
                write.future.set_result(outcome.value)
            else:
                write.future.set_exception(translate(outcome.error, self._name))

    def _outcomes(self, writes: Sequence[_Write]) -> list[_Outcome]:
        try:
            return self._commit_together(writes)
        except _TransactionLostError as lost:
            if len(writes) == 1:
                return [_Outcome(error=lost.__cause__)]
            # Nothing was committed, so each may be tried alone: one that fills the disk or
            # breaks the connection does not take its neighbours with it.
            return [self._outcomes([write])[0] for write in writes]
        except BaseException as error:
            return [_Outcome(error=error)] * len(writes)

    def _commit_together(self, writes: Sequence[_Write]) -> list[_Outcome]:
        with self._engine.connect() as connection:
            transaction = connection.begin()
            try:
                self._prepare(connection)
                outcomes = [_run_alone(connection, write.work) for write in writes]
                names = [_name(write.work) for write in writes]
                _reach("commit", names)
                transaction.commit()
                _reach("committed", names)
            except BaseException:
                with suppress(Exception):
                    transaction.rollback()
                raise
        return outcomes


def _reach(step: str, names: Sequence[str]) -> None:
    for name in names:
        reach(step, name)


def _name(work: Callable[[Session], Any]) -> str:
    """A write's name in the code."""
    function = getattr(work, "func", work)
    return f"{function.__module__}.{function.__qualname__}"


def _run_alone(connection: Connection, work: Callable[[Session], Any]) -> _Outcome:
    """Run one function in a savepoint of its own."""
    session = Session(connection, join_transaction_mode="create_savepoint", expire_on_commit=False)
    try:
        value = work(session)
        session.commit()
    except BaseException as error:
        if is_world_failure(error) and not isinstance(error, OSError):
            raise _TransactionLostError from first_failure(error)
        session.close()
        return _Outcome(error=error)
    session.close()
    return _Outcome(value=value)
