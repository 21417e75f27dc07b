"""Assignments whose round has ended, and whose updates the next round may still fold.

They live in `JobRun.late` while their clients work on them, so that these get no other work; all of
it can be rebuilt from the ledger and from what a client says that it holds.
"""

from collections.abc import Mapping
from functools import partial

from coordinator.engine import directives
from coordinator.engine.live import JobRun, LiveAssignment
from coordinator.engine.policy import lateness
from coordinator.engine.world import World
from storage import rounds as round_repository
from storage.records import AssignmentRecord, AssignmentState, JobState, RoundPurpose, RoundState


def goes_on(run: JobRun, made_version: bool) -> bool:
    """Whether those who still train in the round that ends now may finish for the next one."""
    record = run.record
    assert run.round is not None
    if record.state is JobState.CANCELLED or run.round.record.purpose is not RoundPurpose.TRAIN:
        return False
    return not lateness(run.spec.rounds, int(made_version), record.rounds_committed + made_version)


def too_late(run: JobRun, base_version: int) -> str:
    """Why no further round folds an update of this base; empty where the next one to close does."""
    record = run.record
    is_closing = run.round is not None and run.round.record.state is RoundState.CLOSING
    staleness = record.latest_version + is_closing - base_version
    return lateness(run.spec.rounds, staleness, record.rounds_committed + is_closing)


def part_from_old(world: World, run: JobRun) -> None:
    """Await no late update any more that became too old while its client was at work."""
    for at, live in list(run.late.items()):
        if reason := too_late(run, live.base_version):
            del run.late[at]
            world.attendance.tell(live.record.client_id, directives.cancel_message(at, reason))


def part_from_all(world: World, run: JobRun) -> None:
    """The job has ended: nothing of it is awaited any more."""
    for at, live in run.late.items():
        cancel = directives.cancel_message(at, run.record.state_reason)
        world.attendance.tell(live.record.client_id, cancel)
    run.late.clear()


async def rejoin(
    world: World, runs: Mapping[str, JobRun], record: AssignmentRecord
) -> tuple[JobRun, LiveAssignment] | None:
    """Take up an assignment again that had expired; None where its update can not be folded.

    Raises:
        WorldError: the database cannot be read.
    """
    if record.state is not AssignmentState.EXPIRED:
        return None
    step = await world.database.read(partial(round_repository.get, round_id=record.round_id))
    run = runs.get(step.job_reference)
    if run is None or step.purpose is not RoundPurpose.TRAIN:
        return None
    if too_late(run, step.base_version):
        return None
    live = run.late.setdefault(
        record.id,
        LiveAssignment(
            record,
            record.state,
            0.0,
            step.base_weights_digest,
            step.base_version,
            bytes_down=record.bytes_down,
        ),
    )
    live.lease_ends = world.clock.monotonic() + world.lease_seconds
    return run, live
