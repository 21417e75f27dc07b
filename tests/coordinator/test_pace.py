"""A download that its client does not take is cut after a minute, and goes on when it returns."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest

from coordinator.compiler.compiled_plan import CompiledPlan
from coordinator.services.fleet import FleetService
from coordinator.services.pace import PACE_SECONDS
from headwater.v1 import fleet_pb2 as pb
from headwater.v1 import fleet_pb2_grpc
from storage.database import Database, open_database
from tests.coordinator.rig import Rig, rigged

CONTENT = bytes(32 * 2**20)
"""More than gRPC takes ahead of its reader."""


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_database(f"sqlite:///{tmp_path / 'headwater.db'}", create=True) as database:
        yield database


@pytest.fixture
async def rig(tmp_path: Path, database: Database, plan: CompiledPlan) -> AsyncIterator[Rig]:
    async with rigged(tmp_path, database, plan) as rig:
        yield rig


async def test_a_client_that_takes_no_bytes_is_cut_and_fetches_the_rest(rig: Rig) -> None:
    digest = rig.world.blobs.write(CONTENT)
    server = grpc.aio.server()
    service = FleetService(rig.engine, rig.uploads, insecure=True)
    fleet_pb2_grpc.add_FleetServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = fleet_pb2_grpc.FleetStub(channel)
        call = stub.Fetch(pb.FetchRequest(digest=digest))
        assert (await call.read()).size_bytes == len(CONTENT)
        taken = len((await call.read()).data)
        cut = asyncio.create_task(call.code())
        while not cut.done():
            await rig.clock.jump(PACE_SECONDS)
            await asyncio.sleep(0)
        assert cut.result() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.UNKNOWN)
        rest = stub.Fetch(pb.FetchRequest(digest=digest, offset_bytes=taken))
        assert sum([len(one.data) async for one in rest]) == len(CONTENT) - taken
    await server.stop(None)
