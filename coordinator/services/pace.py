"""The least pace of a stream of bytes: one that holds its place for nothing loses it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from coordinator.engine.clock import Clock

PACE_SECONDS = 60.0
"""Over which a stream must keep its least pace."""


async def too_slow(clock: Clock, bytes_per_second: float, moved_bytes: Callable[[], int]) -> None:
    """Return once fewer bytes than these have moved within a minute."""
    before = moved_bytes()
    while True:
        await clock.wait(asyncio.Event(), PACE_SECONDS)
        if moved_bytes() - before < bytes_per_second * PACE_SECONDS:
            return
        before = moved_bytes()


@asynccontextmanager
async def watched(
    clock: Clock,
    bytes_per_second: float,
    moved_bytes: Callable[[], int],
    cut: Callable[[], Awaitable[None]],
) -> AsyncIterator[None]:
    """Call `cut` once, when the stream that this surrounds is too slow."""

    async def watch() -> None:
        await too_slow(clock, bytes_per_second, moved_bytes)
        await cut()

    watching = asyncio.create_task(watch())
    try:
        yield
    finally:
        watching.cancel()
