"""A coordinator for tests: real gRPC on loopback, scripted answers, and a log of what it heard."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc.aio

from headwater.errors import NotFoundError
from headwater.status import StatusInterceptor
from headwater.v1 import fleet_pb2 as pb
from headwater.v1.fleet_pb2_grpc import FleetServicer, add_FleetServicer_to_server

PATIENCE_SECONDS = 20.0
CHUNK_BYTES = 64


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class FakeFleet(FleetServicer):
    """`heard` has (kind, message) in order; `push` speaks on the newest stream."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}
        self.fetches: list[tuple[str, int]] = []
        self.updates: dict[int, bytes] = {}
        self.offer_answers: list[pb.OfferResponse | Exception] = []
        self.before_welcome: Callable[[pb.Hello], pb.AttendResponse | None] = lambda _: None
        self.fetch_hook: Callable[[str, int], bytes | None] = lambda digest, offset: None
        self.submit_hook: Callable[[Any, Any], Awaitable[pb.SubmitResponse | None]] | None = None
        self.heartbeat_seconds = 120
        self.port = 0
        self._heard: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        self._stream: asyncio.Queue[pb.AttendResponse | None] = asyncio.Queue()
        self._server: grpc.aio.Server | None = None

    async def start(self) -> "FakeFleet":
        self._server = grpc.aio.server(interceptors=[StatusInterceptor()])
        add_FleetServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self._server.start()
        return self

    async def stop(self) -> None:
        if self._server is not None:
            server, self._server = self._server, None
            await server.stop(0)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def add_blob(self, data: bytes) -> str:
        self.blobs[sha256(data)] = data
        return sha256(data)

    def push(self, **message: Any) -> None:
        self._stream.put_nowait(pb.AttendResponse(**message))

    def end_stream(self) -> None:
        self._stream.put_nowait(None)

    async def next(self, kind: str) -> Any:
        """The next message of a kind, passing over others."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                found, message = await self._heard.get()
                if found == kind:
                    return message

    def unread(self) -> list[str]:
        return [kind for kind, _ in list(self._heard._queue)]  # type: ignore[attr-defined]

    async def Attend(self, request_iterator: Any, context: Any) -> AsyncIterator[pb.AttendResponse]:
        hello = (await anext(aiter(request_iterator))).hello
        stream: asyncio.Queue[pb.AttendResponse | None] = asyncio.Queue()
        self._stream = stream
        self._heard.put_nowait(("hello", hello))
        refusal = self.before_welcome(hello)
        if refusal is not None:
            yield refusal
            return
        yield pb.AttendResponse(
            welcome=pb.Welcome(client_name=hello.name, heartbeat_seconds=self.heartbeat_seconds)
        )
        self._heard.put_nowait(("welcomed", hello))
        listening = asyncio.create_task(self._listen(request_iterator))
        try:
            while (message := await stream.get()) is not None:
                yield message
        finally:
            listening.cancel()

    async def _listen(self, request_iterator: Any) -> None:
        async for request in request_iterator:
            kind = request.WhichOneof("message")
            self._heard.put_nowait((kind, getattr(request, kind)))

    async def Fetch(self, request: Any, context: Any) -> AsyncIterator[pb.FetchResponse]:
        self.fetches.append((request.digest, request.offset_bytes))
        self._heard.put_nowait(("fetch", request))
        if request.digest not in self.blobs:
            raise NotFoundError(f"no blob {request.digest[:12]}")
        data = self.fetch_hook(request.digest, request.offset_bytes)
        if data is None:
            data = self.blobs[request.digest][request.offset_bytes :]
        size = len(self.blobs[request.digest])
        yield pb.FetchResponse(size_bytes=size)
        chunk = max(CHUNK_BYTES, size // 16)
        for start in range(0, len(data), chunk):
            yield pb.FetchResponse(data=data[start : start + chunk])

    async def Offer(self, request: Any, context: Any) -> pb.OfferResponse:
        self._heard.put_nowait(("offer", request))
        if self.offer_answers:
            answer = self.offer_answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer
        if not request.size_bytes:
            return have_it(request.assignment_id)
        held = self.updates.get(request.assignment_id, b"")
        if sha256(held) == request.digest:
            return have_it(request.assignment_id)
        return pb.OfferResponse(verdict=pb.OFFER_VERDICT_SEND, from_byte=len(held))

    async def Submit(self, request_iterator: Any, context: Any) -> pb.SubmitResponse:
        header = (await anext(aiter(request_iterator))).header
        self._heard.put_nowait(("submit", header))
        if self.submit_hook is not None:
            answer = await self.submit_hook(header, request_iterator)
            if answer is not None:
                return answer
        data = self.updates.get(header.assignment_id, b"")[: header.from_byte]
        async for request in request_iterator:
            data += frame_bytes(request.frame)
        self.updates[header.assignment_id] = data
        assert sha256(data) == header.digest
        self._heard.put_nowait(("update", data))
        receipt = pb.Receipt(
            assignment_id=header.assignment_id, digest=header.digest, state="accepted"
        )
        return pb.SubmitResponse(receipt=receipt)


def frame_bytes(frame: pb.Frame) -> bytes:
    return (
        len(frame.payload).to_bytes(4, "little")
        + frame.checksum.to_bytes(4, "little")
        + frame.payload
    )


def have_it(assignment_id: int, state: str = "accepted") -> pb.OfferResponse:
    return pb.OfferResponse(
        verdict=pb.OFFER_VERDICT_HAVE_IT,
        receipt=pb.Receipt(assignment_id=assignment_id, state=state),
    )
