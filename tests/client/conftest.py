from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.client.fake_fleet import FakeFleet
from tests.client.fakes import Device


@pytest_asyncio.fixture
async def fleet() -> AsyncIterator[FakeFleet]:
    fleet = await FakeFleet().start()
    yield fleet
    await fleet.stop()


@pytest_asyncio.fixture
async def device(fleet: FakeFleet, tmp_path: Path) -> AsyncIterator[Device]:
    async with Device(fleet, tmp_path / "state") as device:
        yield device
