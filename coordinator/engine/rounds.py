"""A round that has not ended, as memory holds it, and its way back from the database."""

import logging
from functools import partial

from coordinator.engine import directives
from coordinator.engine.fates import tell_fates
from coordinator.engine.live import JobRun, LiveAssignment, LiveRound
from coordinator.engine.world import World
from storage import jobs as job_repository
from storage import rounds as round_repository
from storage.records import RoundRecord

_log = logging.getLogger("headwater.round")


def live_round(world: World, record: RoundRecord, extensions: int = 0) -> LiveRound:
    """A round that has not ended, as memory holds it; leases begin now."""
    lease_ends = world.clock.monotonic() + world.lease_seconds
    return LiveRound(
        record,
        {
            one.id: LiveAssignment(
                one,
                one.state,
                lease_ends,
                record.base_weights_digest,
                record.base_version,
                bytes_down=one.bytes_down,
            )
            for one in record.assignments
        },
        extensions,
    )


def send_assignment(world: World, run: JobRun, live: LiveAssignment) -> None:
    """Push an assignment to its client, if it attends; otherwise it gets it when it returns."""
    attendee = world.attendance.get(live.record.client_id)
    if attendee is None or run.round is None:
        return
    live.instance_id = attendee.instance_id
    attendee.push(
        directives.assignment_message(
            run, run.round.record, live, world.lease_seconds, world.clock.now()
        )
    )


async def refresh(world: World, run: JobRun) -> None:
    """Read the job again after a round ended, and wake those who follow it."""
    run.round, run.waiting_for = None, ""
    run.record = await world.database.read(
        partial(job_repository.by_reference, reference=run.record.reference)
    )
    await run.announce()


async def catch_up(world: World, run: JobRun) -> None:
    """Bring memory to what the database says, after a write whose outcome is not known.

    Raises:
        WorldError: the database cannot be read either.
    """
    run.record = await world.database.read(
        partial(job_repository.by_reference, reference=run.record.reference)
    )
    record = await world.database.read(partial(round_repository.unfinished, job_id=run.record.id))
    if run.round is not None and (record is None or record.id != run.round.record.id):
        ended = partial(round_repository.get, round_id=run.round.record.id)
        tell_fates(world, run.round, await world.database.read(ended))
    if record is None:
        run.round = None
        return
    extensions = await world.database.read(partial(round_repository.extensions, round_id=record.id))
    if run.round is not None and run.round.record.id == record.id:
        run.round.record, run.round.extensions = record, extensions
        for one in record.assignments:
            run.round.assignments[one.id].record = one
            run.round.assignments[one.id].state = one.state
    else:
        run.round = live_round(world, record, extensions)
        for live in run.round.assignments.values():
            send_assignment(world, run, live)


async def wait_for(run: JobRun, reason: str) -> None:
    """Say what the job waits for, where that has changed."""
    if run.waiting_for != reason:
        run.waiting_for = reason
        _log.info("%s", reason, extra=log_fields(run))
        await run.announce()


def log_fields(run: JobRun) -> dict[str, object]:
    """The job and its round, for the log's own fields."""
    fields: dict[str, object] = {"job": run.record.reference}
    if run.round is not None:
        fields["round"] = run.round.record.number
    return fields
