"""How assignments end with their round, whatever memory believed of them. Over both databases."""

from collections.abc import Mapping

import pytest

from storage import jobs, rounds
from storage.records import AssignmentState, Fate, JobState, RoundRecord
from tests.storage.world import World

A = AssignmentState


@pytest.fixture
def fleet(world: World) -> World:
    world.client("b")
    world.client("a")
    return world


def abandon(world: World, step: RoundRecord, fates: Mapping[int, Fate]) -> RoundRecord:
    return world.write(
        lambda s: rounds.abandon(
            s, round_id=step.id, reason="too few", fates=fates, now=world.tick()
        )
    )


def test_bytes_down_count_for_assignments_that_ended_without_an_update(fleet: World) -> None:
    step = fleet.open_round(fleet.job())
    first, second = (one.id for one in step.assignments)
    fleet.accept(first)  # 50 bytes down
    ended = abandon(fleet, step, {second: Fate(A.RELEASED, "complete", bytes_down=70)})
    assert ended.bytes_down == 120
    assert [one.bytes_down for one in ended.assignments] == [50, 70]


@pytest.mark.parametrize("state", [A.EXPIRED, A.RELEASED, A.FAILED, A.DECLINED])
def test_only_a_rejection_overrules_an_acceptance(fleet: World, state: AssignmentState) -> None:
    """An acceptance may be written after memory decided how its assignment ends."""
    step = fleet.open_round(fleet.job())
    first, second = (one.id for one in step.assignments)
    fleet.accept(first)
    fleet.accept(second)
    rejected = Fate(A.REJECTED, "it diverged")
    ended = abandon(fleet, step, {first: Fate(state, "it was late"), second: rejected})
    assert [(one.state, one.reason) for one in ended.assignments] == [
        (A.ACCEPTED, ""),
        (A.REJECTED, "it diverged"),
    ]
    assert ended.accepted == 1


def test_a_job_that_was_cancelled_is_unfinished_until_its_round_has_ended(fleet: World) -> None:
    job = fleet.job()
    step = fleet.open_round(job)
    fleet.state(job.reference, JobState.CANCELLED)
    assert [one.reference for one in fleet.read(jobs.unfinished)] == [job.reference]
    abandon(fleet, step, {})
    assert fleet.read(jobs.unfinished) == []


def test_indices_follow_the_names_as_numbers_of_characters(world: World) -> None:
    """The same on every database, whatever its collation: seeds derive from an index."""
    names = ["a-1", "B", "a", "Z", "a_2", "É"]
    for name in names:
        world.client(name)
    job = world.job()
    step = world.open_round(job, client_ids=[f"id-{name}" for name in names])
    assert [one.client_name for one in step.assignments] == sorted(names)
