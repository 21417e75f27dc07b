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
from storage.blob_directory import BlobDirectory
from storage.database import Database

T = TypeVar("T")
P = ParamSpec("P")


@dataclass(frozen=True)
class World:
    """The database, the blobs, the clients, time, and the operator's settings.

    `spool` is where arriving bytes lie until they are blobs, on the blobs' file system. `held_out`
    binds data set names to the coordinator's own data. `threads` is what a fold and an evaluation
    may use. `lease_seconds` is the silence after which an assignment is given up.
    """

    database: Database
    blobs: BlobDirectory
    spool: Path
    clock: Clock
    attendance: Attendance
    held_out: Mapping[str, str]
    threads: int
    lease_seconds: float
    workers: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(4, thread_name_prefix="round")
    )

    async def work(self, function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
        """Run something that blocks on a worker thread."""
        call = partial(function, *arguments, **options)
        return await asyncio.get_running_loop().run_in_executor(self.workers, call)
