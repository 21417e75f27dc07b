"""A device driven by hand: the Fleet protocol over real gRPC, message by message."""

import hashlib
import queue
import secrets
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from headwater.errors import HeadwaterError
from headwater.layout import Layout
from headwater.plan import ReadablePlan
from headwater.status import error_of, translated
from headwater.updates import FRAME_HEADER, Section, blocks_of, frame
from headwater.v1 import fleet_pb2 as pb
from headwater.v1 import fleet_pb2_grpc

WAIT_SECONDS = 30.0


@dataclass(frozen=True)
class Update:
    """An encoded update: the payload of each block."""

    payloads: tuple[bytes, ...]

    @property
    def encoded(self) -> bytes:
        return b"".join(map(frame, self.payloads))

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.encoded).hexdigest()


def make_update(
    layout: Layout, change: float = 0.01, values: dict[int, float] | None = None
) -> Update:
    """The same change for every value; `values` sets single places of the float vector."""
    floats = np.full(layout.float_count, change, "<f4")
    for place, value in (values or {}).items():
        floats[place] = value
    integers = np.full(layout.integer_count, 5, "<i8")
    payloads = [
        (integers if block.section is Section.INTEGERS else floats)[block.place].tobytes()
        for block in blocks_of(layout)
    ]
    return Update(tuple(payloads))


class Stream:
    """One Attend stream. A reader thread collects what comes, unless `reads` is false."""

    def __init__(self, stub: Any, first: Sequence[pb.AttendRequest], *, reads: bool = True) -> None:
        self._outgoing: queue.Queue[pb.AttendRequest | None] = queue.Queue()
        self._incoming: queue.Queue[pb.AttendResponse | HeadwaterError | None] = queue.Queue()
        for message in first:
            self._outgoing.put(message)
        self._call = stub.Attend(iter(self._outgoing.get, None))
        if reads:
            threading.Thread(target=self._read, daemon=True).start()

    def send(self, **message: Any) -> None:
        self._outgoing.put(pb.AttendRequest(**message))

    def next(self, kind: str, seconds: float = WAIT_SECONDS) -> Any:
        """The next message of a kind, passing over others; raises what ended the stream."""
        while True:
            message = self._incoming.get(timeout=seconds)
            if isinstance(message, HeadwaterError):
                raise message
            assert message is not None, f"the stream ended without {kind}"
            if message.WhichOneof("message") == kind:
                return getattr(message, kind)

    def end(self, seconds: float = WAIT_SECONDS) -> HeadwaterError | None:
        """Wait for the coordinator to end the stream; with which error."""
        while True:
            message = self._incoming.get(timeout=seconds)
            if message is None or isinstance(message, HeadwaterError):
                return message

    def close(self) -> None:
        self._outgoing.put(None)
        self._call.cancel()

    def _read(self) -> None:
        try:
            for response in self._call:
                self._incoming.put(response)
            self._incoming.put(None)
        except grpc.RpcError as error:
            self._incoming.put(error_of(error))


class Device:
    """An identity, a connection, and the four calls. `hello` replaces fields of its Hello."""

    def __init__(self, address: str, name: str, plan: ReadablePlan, /, **hello: Any) -> None:
        self.name = name
        self.layout = plan.manifest.layout
        self._channel = grpc.insecure_channel(
            address, options=(("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
        )
        self._stub = fleet_pb2_grpc.FleetStub(self._channel)
        fields: dict[str, Any] = {
            "client_id": hashlib.sha256(name.encode()).hexdigest()[:32],
            "instance_id": secrets.token_hex(16),
            "name": name,
            "hostname": "test-host",
            "datasets": [pb.Dataset(name="clusters", example_count=10)],
            "encodings": ["fp32"],
        }
        self.hello = pb.Hello(**fields | hello)
        self._streams: list[Stream] = []

    def attend(self, *, held: int = 0) -> Stream:
        """Open a stream and be welcomed."""
        self.hello.held_assignment_id = held
        stream = self.open(pb.AttendRequest(hello=self.hello))
        stream.next("welcome")
        return stream

    def open(self, *first: pb.AttendRequest, reads: bool = True) -> Stream:
        """Open a stream with these messages."""
        stream = Stream(self._stub, first, reads=reads)
        self._streams.append(stream)
        return stream

    def update(self, change: float = 0.01, values: dict[int, float] | None = None) -> Update:
        """A sound update of the plan, but for what the arguments make of it."""
        return make_update(self.layout, change, values)

    def offer(self, assignment_id: int, update: Update, **changed: Any) -> pb.OfferResponse:
        """Offer an update; `changed` replaces fields of the request, or of its summary."""
        summary: dict[str, Any] = {
            "examples": 10,
            "steps": 2,
            "metrics_before": {"loss": 1.0, "accuracy": 0.5},
            "metrics_after": {"loss": 0.5, "accuracy": 0.75},
            "train_seconds": 0.5,
        }
        for key in [key for key in changed if key in pb.UpdateSummary.DESCRIPTOR.fields_by_name]:
            summary[key] = changed.pop(key)
        request: dict[str, Any] = {
            "assignment_id": assignment_id,
            "client_id": self.hello.client_id,
            "digest": update.digest,
            "size_bytes": len(update.encoded),
            "encoding": "fp32",
            "summary": pb.UpdateSummary(**summary),
        }
        with translated():
            answer: pb.OfferResponse = self._stub.Offer(
                pb.OfferRequest(**request | changed), timeout=WAIT_SECONDS
            )
        return answer

    def submit(
        self,
        assignment_id: int,
        update: Update,
        frames: Iterable[pb.Frame] | None = None,
        *,
        from_byte: int = 0,
        **header: Any,
    ) -> pb.Receipt:
        """Send an update, or other frames in its name."""
        fields: dict[str, Any] = {
            "assignment_id": assignment_id,
            "client_id": self.hello.client_id,
            "digest": update.digest,
            "from_byte": from_byte,
        }
        head = pb.SubmitRequest(header=pb.SubmitHeader(**fields | header))
        sent = frames_of(update) if frames is None else frames
        return self.send([head, *(pb.SubmitRequest(frame=one) for one in sent)])

    def frames(self, update: Update) -> list[pb.Frame]:
        """The frames of an update as they are sent."""
        return frames_of(update)

    def send(self, messages: Iterable[pb.SubmitRequest]) -> pb.Receipt:
        """Any messages as an upload."""
        with translated():
            receipt: pb.Receipt = self._stub.Submit(iter(messages), timeout=WAIT_SECONDS).receipt
        return receipt

    def deliver(
        self, assignment_id: int, update: Update | None = None, **changed: Any
    ) -> pb.Receipt:
        """What a well-behaved device does with a finished update."""
        update = update or self.update()
        answer = self.offer(assignment_id, update, **changed)
        assert answer.verdict == pb.OFFER_VERDICT_SEND, answer
        return self.submit(assignment_id, update)

    def fetch(self, digest: str, offset_bytes: int = 0) -> bytes:
        """A blob's bytes from an offset."""
        request = pb.FetchRequest(
            digest=digest, offset_bytes=offset_bytes, client_id=self.hello.client_id
        )
        with translated():
            return b"".join(one.data for one in self._stub.Fetch(request, timeout=WAIT_SECONDS))

    def raw(self, method: str, content: bytes) -> None:
        """Send bytes that are no message as the first of a stream, and await its end."""
        call = self._channel.stream_stream(method)(iter([content]), timeout=WAIT_SECONDS)
        for _ in call:
            pass

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        self._channel.close()


def frames_of(update: Update) -> list[pb.Frame]:
    """The frames of an update as they are sent."""
    return [
        pb.Frame(checksum=FRAME_HEADER.unpack(frame(one)[: FRAME_HEADER.size])[1], payload=one)
        for one in update.payloads
    ]
