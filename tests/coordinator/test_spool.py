"""What stays in the spool: parts of uploads that may still be finished, and nothing else."""

import asyncio
import os
from datetime import timedelta

import pytest

from coordinator.engine.world import World
from coordinator.services.spool import clear_spool
from headwater.errors import HeadwaterError
from storage import rounds
from storage.records import AssignmentState
from tests.coordinator.conftest import NOW
from tests.storage.world import World as Rows


def left(world: World, *names: str, age: timedelta = timedelta()) -> list[str]:
    """The files that remain of these after the spool was cleared."""
    for name in names:
        path = world.spool / name
        path.write_bytes(b"part")
        seconds = (NOW - age).timestamp()
        os.utime(path, (seconds, seconds))
    asyncio.run(clear_spool(world))
    return sorted(path.name for path in world.spool.iterdir())


def test_parts_of_pending_assignments_stay_and_those_of_ended_ones_go(
    world: World, rows: Rows
) -> None:
    first, second = (one.id for one in rows.open_round(rows.job()).assignments)
    rows.write(
        lambda s: rounds.advance_assignment(
            s, assignment_id=second, state=AssignmentState.EXPIRED, reason="silent", now=rows.now
        )
    )
    names = (f"{first}-{'0' * 64}.part", f"{second}-{'0' * 64}.part", f"999-{'0' * 64}.part")
    assert left(world, *names) == [names[0]]


def test_parts_go_with_their_round(world: World, rows: Rows) -> None:
    step = rows.open_round(rows.job())
    name = f"{step.assignments[0].id}-{'0' * 64}.part"
    assert left(world, name) == [name]
    rows.write(lambda s: rounds.abandon(s, round_id=step.id, reason="no", fates={}, now=rows.now))
    assert left(world) == []


def test_parts_of_blobs_go_after_an_hour(world: World) -> None:
    name = f"store-{'0' * 64}-7f.part"
    assert left(world, name, age=timedelta(minutes=59)) == [name]
    assert left(world, name, age=timedelta(minutes=61)) == []


def test_a_file_that_the_coordinator_did_not_make_stays(world: World) -> None:
    assert left(world, "README", age=timedelta(days=9)) == ["README"]


def test_a_spool_that_cannot_be_read_is_told(world: World) -> None:
    world.spool.rmdir()
    with pytest.raises(HeadwaterError, match="spool"):
        asyncio.run(clear_spool(world))
