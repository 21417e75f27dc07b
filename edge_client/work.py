"""One assignment under way: what it is, how it goes, and whether it was dropped."""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from edge_client.training import Activity, Cancelled
from headwater.v1 import fleet_pb2
from headwater.v1.fleet_pb2 import AttendRequest, Progress

T = TypeVar("T")

_GRACE_SECONDS = 5.0


class Work:
    """An assignment under way, or an update of an earlier process that is being delivered."""

    def __init__(self, assignment_id: int, job: str, round_number: int) -> None:
        self.assignment_id = assignment_id
        self.job = job
        self.round_number = round_number
        self.activity = Activity()
        self.reason = ""
        self.in_call = False
        self._dropped = asyncio.Event()

    @property
    def dropped(self) -> bool:
        """Whether it became pointless."""
        return self._dropped.is_set()

    def drop(self, reason: str) -> None:
        """Make it pointless: training stops between two steps, calls are cancelled."""
        if not self.dropped:
            self.reason = reason
            self.activity.stopping.set()
            self._dropped.set()

    def supersede(self, reason: str) -> None:
        """Drop it, but let a call under way end: its answer is probably on the wire."""
        if self.in_call:
            asyncio.get_running_loop().call_later(_GRACE_SECONDS, self.drop, reason)
        else:
            self.drop(reason)

    async def unless_dropped(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of `coroutine`, which is cancelled when the work is dropped.

        Raises:
            Cancelled: it was dropped.
        """
        task = asyncio.ensure_future(coroutine)
        dropped = asyncio.ensure_future(self._dropped.wait())
        try:
            await asyncio.wait({task, dropped}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Cancelled
            return await task
        finally:
            dropped.cancel()
            if not task.done():
                task.cancel()
                with suppress(asyncio.CancelledError, Exception):
                    await task

    def report_transfer(self, done_bytes: int, total_bytes: int) -> None:
        """Record the progress of a transfer."""
        self.activity.fraction = min(1.0, done_bytes / total_bytes) if total_bytes else 1.0

    def progress(self) -> AttendRequest:
        """What to tell the coordinator now."""
        return AttendRequest(
            progress=Progress(
                assignment_id=self.assignment_id,
                phase=self.activity.phase,
                fraction=self.activity.fraction,
            )
        )

    @property
    def phase_name(self) -> str:
        """The phase, for people."""
        name = fleet_pb2.Phase.Name(self.activity.phase)
        return name.removeprefix("PHASE_").lower()
