"""The two connections to a coordinator: one for control messages, one for bulk bytes.

They are apart so that a heartbeat never waits behind a gigabyte of update. Channels with equal
options would share one connection; the local subchannel pool keeps them apart.
"""

from types import TracebackType
from typing import Any

import grpc.aio

from headwater.v1.fleet_pb2_grpc import FleetStub

KEEPALIVE_SECONDS = 20
"""How long a silent connection goes unchecked; the coordinator allows pings this often."""

KEEPALIVE_TIMEOUT_SECONDS = 10
"""How long what was sent may go without the other machine's acknowledgement."""

BULK_PING_SECONDS = 60
"""How long the answer to a ping may take where it waits behind buffers full of an update."""

CONNECT_SECONDS = 10
"""How long a connection may take to come about: four ways of a satellite's link, packets lost."""

MESSAGE_LIMIT_BYTES = 8 * 2**20
"""Room for one block in any encoding, several times over."""

_COMMON: list[tuple[str, Any]] = [
    ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
    ("grpc.max_send_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_LIMIT_BYTES),
    ("grpc.use_local_subchannel_pool", 1),
    # Our own backoff decides when to try; gRPC's must not refuse the attempt.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # By its name the least wait; what gRPC does with it is to give up an attempt after so long.
    ("grpc.min_reconnect_backoff_ms", CONNECT_SECONDS * 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    ("grpc.enable_retries", 0),
]
_CONTROL: list[tuple[str, Any]] = [
    *_COMMON,
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_SECONDS * 1000),
]
_BULK: list[tuple[str, Any]] = [
    *_COMMON,
    ("grpc.http2.ping_timeout_ms", BULK_PING_SECONDS * 1000),
    ("grpc.http2.max_frame_size", 2**20),
    ("grpc.http2.lookahead_bytes", 16 * 2**20),
]


class Connection:
    """Both channels and their stubs, open for the life of a session; they reconnect by themselves.

    Must be made on the event loop that uses it.
    """

    def __init__(self, target: str) -> None:
        self._channels = (
            grpc.aio.insecure_channel(target, options=_CONTROL),
            grpc.aio.insecure_channel(target, options=_BULK),
        )
        self.control, self.bulk = (FleetStub(channel) for channel in self._channels)

    async def __aenter__(self) -> "Connection":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for channel in self._channels:
            await channel.close()
