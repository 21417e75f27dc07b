"""What the engine works with: everything that reaches outside, in one place."""

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from coordinator.engine.attendance import Attendance
from coordinator.engine.clock import Clock
from coordinator.engine.eligibility import Eligibility
from storage.blob_store import BlobStore
from storage.database import Database

T = TypeVar("T")
P = ParamSpec("P")


def _pool(name: str) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(4, thread_name_prefix=name)


@dataclass(frozen=True)
class World:
    """The database, the blobs, the clients, time, and the operator's settings.

    `spool` is where arriving bytes lie until they are blobs, on the blobs' file system. `held_out`
    binds data set names to the coordinator's own data. `threads` is what a fold and an evaluation
    may use. `lease_seconds` is the silence after which an assignment is given up. An
    transfer that is slower than `minimum_bytes_per_second` is cut (`coordinator.services.pace`).
    """

    database: Database
    blobs: BlobStore
    spool: Path
    clock: Clock
    attendance: Attendance
    held_out: Mapping[str, str]
    threads: int
    lease_seconds: float
    minimum_bytes_per_second: float = 10_000.0
    eligibility: Eligibility = field(default_factory=Eligibility)
    workers: ThreadPoolExecutor = field(default_factory=partial(_pool, "disk"))
    computers: ThreadPoolExecutor = field(default_factory=partial(_pool, "round"))

    async def work(self, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Run something that blocks on the disk for a moment on a worker thread."""
        call = partial(function, *arguments, **options)
        return await asyncio.get_running_loop().run_in_executor(self.workers, call)

    async def compute(self, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Run a fold or an evaluation on threads of its own: transfers never wait behind them."""
        call = partial(function, *arguments, **options)
        return await asyncio.get_running_loop().run_in_executor(self.computers, call)

    def end(self) -> None:
        """Let the threads go. A fold under way is not waited for: a restart repeats it."""
        self.computers.shutdown(wait=False, cancel_futures=True)
        self.workers.shutdown()
