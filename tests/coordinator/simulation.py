"""A coordinator's process, one call at a time: which one is next is drawn, the same in every run.

All that the engine does takes turns on one event loop. Its calls to the database, the disk and the
threads of a fold do not run by themselves: they wait until the test lets one of them go, so that a
client, an operator, a failure or a kill can come between any two of them.
"""

import asyncio
import errno
import random
import selectors
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.orm import Session

from coordinator.engine.attendance import Attendance
from coordinator.engine.engine import Engine
from coordinator.engine.world import World
from coordinator.services.fleet import FleetService
from coordinator.services.uploads import Uploads
from headwater.errors import StorageError
from headwater.steps import observed
from storage.blob_directory import BlobDirectory
from storage.database import Database, Hold
from tests.coordinator.rig import LEASE, JumpingClock

T = TypeVar("T")


class StillSelector(selectors.DefaultSelector):
    """Tells when its loop has nothing left to do but wait for what never comes."""

    def __init__(self) -> None:
        super().__init__()
        self.still: Callable[[], None] = lambda: None

    def select(self, timeout: float | None = None) -> list[Any]:
        events = super().select(0)
        if timeout != 0 and not events:
            self.still()
        return events


class Pending:
    """Calls that wait for the test to let them go. Writes keep their order, as a database's do."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self._writes: list[tuple[Future[Any], Callable[[], Any]]] = []
        self._others: list[tuple[Future[Any], Callable[[], Any]]] = []

    def __len__(self) -> int:
        return len(self._writes) + len(self._others)

    def add(self, call: Callable[[], T], *, write: bool = False) -> Future[T]:
        future: Future[T] = Future()
        (self._writes if write else self._others).append((future, call))
        return future

    def carry_out(self) -> None:
        """Let one go."""
        at = self._draw.randrange(len(self._others) + bool(self._writes))
        future, call = (
            self._others.pop(at) if at < len(self._others) else self._writes.pop(0)
        )  # fmt: skip
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(call())
        except AssertionError:
            raise  # the test's own
        except Exception as error:
            future.set_exception(error)

    def drop(self) -> None:
        for future, _ in [*self._writes, *self._others]:
            future.cancel()
        self._writes, self._others = [], []


class PendingPool(ThreadPoolExecutor):
    """A pool whose work waits with the rest; it has no thread."""

    def __init__(self, pending: Pending) -> None:
        super().__init__(1)
        self._pending = pending

    def submit(self, call: Callable[..., T], /, *args: Any, **options: Any) -> Future[T]:
        return self._pending.add(partial(call, *args, **options))


class Faults:
    """Lets the disk or the database fail at the steps of a kind, so often."""

    def __init__(self) -> None:
        self.struck = 0
        self.dead = False
        self._armed: dict[str, int] = {}

    def arm(self, step: str, times: int) -> None:
        self._armed[step] = times

    def disarm(self) -> None:
        self._armed = {}

    def __call__(self, step: str, subject: object) -> None:
        if self.dead:  # what runs while a killed process is taken apart changes nothing
            raise OSError(errno.EIO, "the process was killed")
        if self._armed.get(step, 0) > 0:
            self._armed[step] -= 1
            self.struck += 1
            raise OSError(errno.EIO, f"no {step} for a moment")


class PendingDatabase(Database):
    """A database whose calls wait; `after` looks at it after each write that it was asked for."""

    def __init__(
        self, inner: Database, pending: Pending, faults: Faults, after: Callable[[], None]
    ) -> None:
        self._inner, self._pending, self._faults, self._after = inner, pending, faults, after

    async def write(self, work: Callable[[Session], T]) -> T:
        return await asyncio.wrap_future(
            self._pending.add(partial(self.write_now, work), write=True)
        )

    async def read(self, work: Callable[[Session], T]) -> T:
        return await asyncio.wrap_future(self._pending.add(partial(self.read_now, work)))

    def write_now(self, work: Callable[[Session], T]) -> T:
        try:
            return self._inner.write_now(work)
        finally:
            self._after()

    def read_now(self, work: Callable[[Session], T]) -> T:
        try:
            self._faults("read", "")
        except OSError as error:
            raise StorageError(str(error)) from error
        return self._inner.read_now(work)

    def hold(self, holder: str) -> Hold:
        return self._inner.hold(holder)

    def close(self) -> None:
        self._inner.close()


class Simulation:
    """One coordinator after another on one folder and one database, until `end`.

    `after` looks at the database after each write.
    """

    def __init__(
        self, folder: Path, database: Database, seed: int, after: Callable[[], None]
    ) -> None:
        self.folder, self.seconds = folder, 0.0
        self._selector = StillSelector()
        self.loop = asyncio.SelectorEventLoop(self._selector)
        self._selector.still = self.loop.stop
        self.pending = Pending(random.Random(seed))
        self.faults = Faults()
        self._database = PendingDatabase(database, self.pending, self.faults, after)
        self._observed = observed(self.faults)
        self._observed.__enter__()
        self._errors: list[BaseException] = []
        self.loop.set_exception_handler(self._note)
        self.begin()

    def begin(self) -> None:
        """Start a coordinator on what is there."""
        self.clock = JumpingClock()
        self.clock.seconds = self.seconds
        (self.folder / "spool").mkdir(exist_ok=True)
        self.world = World(
            database=self._database, blobs=BlobDirectory(self.folder / "blobs"),
            spool=self.folder / "spool", clock=self.clock, attendance=Attendance(), held_out={},
            threads=1, lease_seconds=LEASE,
            workers=PendingPool(self.pending), computers=PendingPool(self.pending),
        )  # fmt: skip
        self.engine = Engine(self.world)
        self.fleet = FleetService(self.engine, Uploads(self.engine), insecure=True)

    def task(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Something to happen beside the rest; what it raises fails the test at once."""
        task = self.loop.create_task(work)
        task.add_done_callback(self._ended)
        return task

    def go_on(self, calls: int | None = None) -> None:
        """Let so many of the waiting calls go, each after all has come to rest; None: all."""
        self._rest()
        done = 0
        while self.pending and done != calls:
            self.pending.carry_out()
            done += 1
            self._rest()

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        """What comes of something, with all that happens meanwhile."""
        task = self.loop.create_task(work)
        self._rest()
        while not task.done():
            assert self.pending, "it waits for something that never comes"
            self.go_on(1)
        return task.result()

    def jump(self, seconds: float) -> None:
        self.seconds += seconds
        task = self.task(self.clock.jump(seconds))
        self._rest()
        assert task.done()

    def kill(self, unseen: int = 0) -> None:
        """End the process as `kill -9` does; `unseen` calls still take place and tell nobody."""
        for _ in range(min(unseen, len(self.pending))):
            self.pending.carry_out()
        self.faults.dead = True
        self._cancel_all()
        self.faults.dead = False

    def check_tasks(self) -> None:
        """Every job has a loop that goes on, or ended as it should."""
        for task in self.engine._tasks.values():
            if task.done() and not task.cancelled():
                task.result()

    def end(self) -> None:
        self.kill()
        self._observed.__exit__(None, None, None)
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def _cancel_all(self) -> None:
        while tasks := asyncio.all_tasks(self.loop):
            self.pending.drop()
            for one in tasks:
                one.cancel()
            self._rest()
            for one in tasks:
                # One that still has a file to close ends in the next turn.
                if one.done() and not one.cancelled():
                    one.exception()  # nobody is left to ask
        self.pending.drop()

    def _rest(self) -> None:
        """Run until every task waits for a call, for time or for a client."""
        self.loop.run_forever()
        if self._errors:
            raise self._errors[0]

    def _ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._errors += [] if self.faults.dead else [error]

    def _note(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        # What is told of a task when it is collected comes at a random moment.
        if "task" not in context and "future" not in context and not self.faults.dead:
            self._errors.append(context.get("exception") or AssertionError(context["message"]))
