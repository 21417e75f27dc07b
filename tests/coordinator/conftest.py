import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from coordinator.author import compile_job
from coordinator.compiler.compiled_plan import CompiledPlan
from coordinator.engine.attendance import Attendance
from coordinator.engine.world import World
from storage.blob_directory import BlobDirectory
from storage.database import Database, open_database
from tests.coordinator.rig import Rig, rigged
from tests.storage.world import World as Rows
from tests.system.training import write_job

NOW = datetime(2026, 1, 2, tzinfo=UTC)


class StoppedClock:
    """Always the same instant."""

    def now(self) -> datetime:
        return NOW

    def monotonic(self) -> float:
        return 0.0

    async def wait(self, event: asyncio.Event, seconds: float | None) -> None:
        await event.wait()


@pytest.fixture(scope="session")
def plan(tmp_path_factory: pytest.TempPathFactory) -> CompiledPlan:
    """The tiny plan of the system tests."""
    return compile_job(write_job(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with open_database(f"sqlite:///{tmp_path / 'headwater.db'}", create=True) as database:
        yield database


@pytest.fixture
def world(tmp_path: Path, database: Database) -> Iterator[World]:
    """A coordinator's surroundings, with nobody in them."""
    spool = tmp_path / "spool"
    spool.mkdir()
    world = World(
        database=database,
        blobs=BlobDirectory(tmp_path / "blobs"),
        spool=spool,
        clock=StoppedClock(),
        attendance=Attendance(),
        held_out={},
        threads=1,
        lease_seconds=30,
    )
    yield world
    world.workers.shutdown()


@pytest.fixture
def rows(database: Database) -> Rows:
    """Short ways to put things into the world's database; it knows the clients a and b."""
    rows = Rows(database)
    rows.client("a")
    rows.client("b")
    return rows


@pytest.fixture
async def rig(tmp_path: Path, database: Database, plan: CompiledPlan) -> AsyncIterator[Rig]:
    """A coordinator under a clock that jumps, for the module's own `plan`."""
    async with rigged(tmp_path, database, plan) as rig:
        yield rig
