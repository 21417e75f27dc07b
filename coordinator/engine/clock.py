"""Time, injected, so that tests can jump."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """The engine's only source of time."""

    def now(self) -> datetime:
        """The wall clock, in UTC: for records."""

    def monotonic(self) -> float:
        """Seconds that never go back: for leases. Deadlines outlive a process: they use `now`."""

    async def wait(self, event: asyncio.Event, seconds: float | None) -> None:
        """Return when the event is set or the seconds are over (None: no limit)."""


class SystemClock:
    """The machine's time."""

    def now(self) -> datetime:
        """The wall clock, in UTC."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """The machine's monotonic clock, in seconds."""
        return time.monotonic()

    async def wait(self, event: asyncio.Event, seconds: float | None) -> None:
        """Return when the event is set or the seconds are over."""
        try:
            await asyncio.wait_for(event.wait(), seconds)
        except TimeoutError:
            return
