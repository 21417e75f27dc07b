"""The least pace of a stream of bytes: one that holds its place for nothing loses it."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from coordinator.engine.clock import Clock

PACE_SECONDS = 60.0
"""Over which a stream must keep its least pace, or longer: see `pace_seconds`."""

MESSAGE_BYTES = 2**20
"""The largest message of a stream. Its bytes count when the whole of it has moved."""


def pace_seconds(bytes_per_second: float) -> float:
    """Over which a stream is judged: long enough for two messages of the least pace."""
    return max(PACE_SECONDS, 2 * MESSAGE_BYTES / bytes_per_second)


async def too_slow(clock: Clock, bytes_per_second: float, moved_bytes: Callable[[], int]) -> None:
    """Return once fewer bytes have moved than this pace moves; never for a pace of 0.

    A message under way may hide as many bytes as the largest has.
    """
    if not bytes_per_second:
        await asyncio.Event().wait()
    seconds, before = pace_seconds(bytes_per_second), moved_bytes()
    while True:
        await clock.wait(asyncio.Event(), seconds)
        if moved_bytes() - before < bytes_per_second * seconds - MESSAGE_BYTES:
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
