"""Who writes an assignment's part of an upload: one stream at a time, and the newest wins.

A stream whose device vanished without a word may look alive for half a minute. The device comes
back before that, and must not wait for it, and the two must not write one file.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from coordinator.engine.clock import Clock
from coordinator.services.pace import pace_seconds, too_slow
from headwater.errors import ConflictError, HeadwaterError, UnavailableError

T = TypeVar("T")

NEWER = "a newer stream sends this update"


class Stream:
    """One stream's turn; it ends at its next message once the stream was cut."""

    def __init__(self) -> None:
        self._cut = asyncio.Event()
        self._read = asyncio.Event()
        self._why: HeadwaterError = ConflictError(NEWER)
        self.received_bytes = 0

    def cut(self, why: HeadwaterError | None = None) -> None:
        """Its device is gone, or sends anew, unless another reason is given."""
        self._why = why or self._why
        self._cut.set()

    def check(self) -> None:
        """Raises why it was cut, when it was."""
        if self._cut.is_set():
            raise self._why

    async def messages(
        self, requests: AsyncIterator[T], size_bytes: Callable[[T], int]
    ) -> AsyncGenerator[T, None]:
        """What comes, until its end or until the stream is cut.

        Raises:
            ConflictError: it was cut. UnavailableError: it was cut because it is too slow.
        """
        self._read.set()
        cut = asyncio.ensure_future(self._cut.wait())
        try:
            while (message := await self._next(requests, cut)) is not None:
                self.received_bytes += size_bytes(message)
                yield message
        finally:
            cut.cancel()

    async def cut_when_slow(self, clock: Clock, bytes_per_second: float) -> None:
        """Cut it when it is too slow, unless this is cancelled before.

        The first minute begins when its messages are read: before that the stored part is.
        """
        await self._read.wait()
        await too_slow(clock, bytes_per_second, lambda: self.received_bytes)
        self.cut(
            UnavailableError(
                f"fewer than {bytes_per_second:g} bytes a second came in "
                f"{pace_seconds(bytes_per_second):g} seconds: offer it again"
            )
        )

    async def _next(self, requests: AsyncIterator[T], cut: asyncio.Future[Any]) -> T | None:
        coming = asyncio.ensure_future(anext(requests, None))
        try:
            await asyncio.wait({coming, cut}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not coming.done():
                coming.cancel()
        self.check()
        return await coming


class UploadStreams:
    """The newest stream of each assignment. Used on the event loop only."""

    def __init__(self) -> None:
        self._newest: dict[int, Stream] = {}
        self._turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()

    @asynccontextmanager
    async def turn(self, assignment_id: int, stream: Stream) -> AsyncIterator[None]:
        """Cut the assignment's stream, wait for its end, and be the only one until a newer comes.

        Raises:
            ConflictError: a newer one came while this one waited.
        """
        if (older := self._newest.get(assignment_id)) is not None:
            older.cut()
        self._newest[assignment_id] = stream
        lock = self._turns.setdefault(assignment_id, asyncio.Lock())
        try:
            async with lock:
                stream.check()
                yield
        finally:
            if self._newest.get(assignment_id) is stream:
                del self._newest[assignment_id]
