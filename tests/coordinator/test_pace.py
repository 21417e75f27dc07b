"""A download that its client does not take is cut after a minute, and goes on when it returns."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest

from coordinator.services.fleet import FleetService
from coordinator.services.pace import MESSAGE_BYTES, pace_seconds, too_slow
from headwater.v1 import fleet_pb2 as pb
from headwater.v1 import fleet_pb2_grpc
from tests.coordinator.rig import JumpingClock, Rig

CONTENT = bytes(32 * 2**20)
"""More than gRPC takes ahead of its reader."""


class Watched(FleetService):
    """Tells when a download has ended."""

    ended = False

    async def Fetch(
        self, request: pb.FetchRequest, context: object
    ) -> AsyncIterator[pb.FetchResponse]:
        try:
            async for response in super().Fetch(request, context):
                yield response
        finally:
            self.ended = True


async def test_a_client_that_takes_no_bytes_is_cut_and_fetches_the_rest(rig: Rig) -> None:
    digest = rig.world.blobs.write(CONTENT)
    server = grpc.aio.server()
    service = Watched(rig.engine, rig.uploads, insecure=True)
    fleet_pb2_grpc.add_FleetServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = fleet_pb2_grpc.FleetStub(channel)
        call = stub.Fetch(pb.FetchRequest(digest=digest))
        messages = aiter(call)
        assert (await anext(messages)).size_bytes == len(CONTENT)
        while not service.ended:
            await rig.clock.jump(pace_seconds(rig.world.minimum_bytes_per_second))
            await asyncio.sleep(0)
        taken = 0
        with pytest.raises(grpc.aio.AioRpcError) as cut:
            async for one in messages:
                taken += len(one.data)
        assert cut.value.code() is grpc.StatusCode.UNAVAILABLE, cut.value
        rest = stub.Fetch(pb.FetchRequest(digest=digest, offset_bytes=taken))
        assert sum([len(one.data) async for one in rest]) == len(CONTENT) - taken
    await server.stop(None)


@pytest.mark.parametrize("bytes_per_second", [10_000.0, 1_000_000.0])
async def test_a_stream_of_the_least_pace_is_never_cut(bytes_per_second: float) -> None:
    """Whatever part of a message has come when it is looked at."""
    clock, moved, cut = JumpingClock(), [0], asyncio.Event()

    async def watch() -> None:
        await too_slow(clock, bytes_per_second, lambda: moved[0])
        cut.set()

    watching = asyncio.create_task(watch())
    for _ in range(10):
        await asyncio.sleep(0)
        before = clock.monotonic()
        await clock.jump(pace_seconds(bytes_per_second) * 1.001)
        sent = int(clock.monotonic() * bytes_per_second)
        assert clock.monotonic() > before
        moved[0] = sent // MESSAGE_BYTES * MESSAGE_BYTES
        for _ in range(5):
            await asyncio.sleep(0)
        assert not cut.is_set()
    for _ in range(20):
        await clock.jump(pace_seconds(bytes_per_second) * 1.001)
        for _ in range(5):
            await asyncio.sleep(0)
    assert cut.is_set()
    watching.cancel()
