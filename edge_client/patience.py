"""Trying a call again for as long as the coordinator is away."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from edge_client.backoff import Backoff
from edge_client.clock import Clock
from headwater.errors import UnavailableError

T = TypeVar("T")

_log = logging.getLogger("headwater.client")


class Patience:
    """Waits until the client attends, calls, and begins again where the coordinator is away."""

    def __init__(self, attending: asyncio.Event, clock: Clock, random: Callable[[], float]) -> None:
        self._attending = attending
        self._clock = clock
        self._random = random

    async def call(self, what: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of `attempt`, once it does not raise UnavailableError."""
        backoff = Backoff(self._random)
        while True:
            await self._attending.wait()
            try:
                return await attempt()
            except UnavailableError as error:
                delay = backoff.next_seconds()
                _log.warning("%s failed, again in %.1f s: %s", what, delay, error)
                await self._clock.sleep(delay)

    async def wait(self, seconds: float) -> None:
        """Wait as the coordinator asked."""
        await self._clock.sleep(seconds)
