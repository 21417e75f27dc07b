"""The Attend stream: small control messages both ways, until it ends."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Callable
from typing import TYPE_CHECKING

from edge_client.clock import Clock

if TYPE_CHECKING:
    from headwater.v1.fleet_pb2_grpc import FleetAsyncStub
from headwater.errors import DisplacedError, UnavailableError
from headwater.status import translated
from headwater.steps import reach
from headwater.v1.fleet_pb2 import (
    AttendRequest,
    AttendResponse,
    ComeBack,
    Heartbeat,
    Hello,
    Welcome,
)

_WELCOME_SECONDS = 20.0
_QUEUE_MESSAGES = 64
"""More waiting messages than this means a stalled stream, where fresh ones say nothing new."""


class Attendance:
    """One stream, from Hello until it ends.

    `on_welcome` is called once, then `on_message` for everything but Welcome, ComeBack and
    Displaced.
    """

    def __init__(
        self,
        stub: "FleetAsyncStub",
        clock: Clock,
        *,
        on_welcome: Callable[[Welcome], None],
        on_message: Callable[[AttendResponse], None],
    ) -> None:
        self._stub = stub
        self._clock = clock
        self._on_welcome = on_welcome
        self._on_message = on_message
        self._outgoing: asyncio.Queue[AttendRequest | None] = asyncio.Queue(_QUEUE_MESSAGES)
        self._sent = 0

    def send(self, message: AttendRequest) -> None:
        """Queue a message; dropped on a stalled stream."""
        if not self._outgoing.full():
            self._outgoing.put_nowait(message)

    async def run(self, hello: Hello) -> ComeBack | None:
        """Attend until the coordinator ends the stream; a ComeBack says when to return.

        Raises:
            DisplacedError: another instance of this identity took over.
            UnavailableError: the stream broke, or no Welcome came.
            UserError: the coordinator refuses this client.
        """
        with translated():
            call = self._stub.Attend(self._messages(hello))
            heartbeats: asyncio.Task[None] | None = None
            try:
                async with asyncio.timeout(_WELCOME_SECONDS):
                    welcome = await _welcome(call)
                self._on_welcome(welcome)
                heartbeats = asyncio.create_task(self._beat(welcome.heartbeat_seconds / 2))
                return await self._listen(call)
            except TimeoutError as error:
                raise UnavailableError(
                    f"the coordinator did not answer within {_WELCOME_SECONDS:.0f} s"
                ) from error
            finally:
                if heartbeats is not None:
                    heartbeats.cancel()
                call.cancel()
                self._end_messages()

    async def _listen(self, call: AsyncIterable[AttendResponse]) -> ComeBack | None:
        async for response in call:
            match response.WhichOneof("message"):
                case "displaced":
                    raise DisplacedError(response.displaced.reason)
                case "come_back":
                    return response.come_back
                case None:
                    pass  # a newer coordinator says something that this client does not know
                case kind:
                    reach("received", kind)
                    self._on_message(response)
        return None

    async def _messages(self, hello: Hello) -> AsyncIterator[AttendRequest]:
        reach("send", "hello")
        yield AttendRequest(hello=hello)
        while True:
            message = await self._outgoing.get()
            if message is None:
                return
            self._sent += 1
            reach("send", message.WhichOneof("message"))
            yield message

    def _end_messages(self) -> None:
        """Let `_messages` end: gRPC waits for it for ever on a stream that broke by itself."""
        if self._outgoing.full():
            self._outgoing.get_nowait()
        self._outgoing.put_nowait(None)

    async def _beat(self, seconds: float) -> None:
        """Break every silence of half the longest that the coordinator allows."""
        while True:
            before = self._sent
            await self._clock.sleep(max(seconds, 0.5))
            if self._sent == before:
                self.send(AttendRequest(heartbeat=Heartbeat()))


async def _welcome(call: AsyncIterable[AttendResponse]) -> Welcome:
    async for response in call:
        match response.WhichOneof("message"):
            case "welcome":
                return response.welcome
            case "displaced":
                raise DisplacedError(response.displaced.reason)
        raise UnavailableError("the coordinator spoke before it welcomed this client")
    raise UnavailableError("the coordinator ended the stream before it welcomed this client")
