"""How a round opens: who can take part, who is drawn, and the write that begins it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy.orm import Session

from coordinator.engine import directives
from coordinator.engine.candidates import candidates
from coordinator.engine.encoding_choice import encoding_of
from coordinator.engine.live import JobRun
from coordinator.engine.policy import Opening, opening
from coordinator.engine.rounds import live_round, log_fields, send_assignment, wait_for
from coordinator.engine.seeds import derived_seed
from coordinator.engine.selection import Candidate, ineligibility, select
from coordinator.engine.world import World
from coordinator.jobs.job_spec import AUTO
from headwater.errors import ConflictError
from storage import clients as client_repository
from storage import jobs as job_repository
from storage import rounds as round_repository
from storage.records import (
    JobState,
    Offer,
    RoundPurpose,
    RoundRecord,
)

TOLD = 3
"""How many of the clients that cannot take part are named beside what a job waits for."""

_log = logging.getLogger("headwater.round")


@dataclass(frozen=True)
class Survey:
    """The attending clients as a job sees them: who is eligible, and why the others are not."""

    everyone: Sequence[Candidate]
    reasons: Mapping[str, str]
    eligible: Sequence[Candidate]
    decision: Opening


def survey(world: World, run: JobRun, busy: Mapping[str, str]) -> Survey:
    """Look at the attending clients; `busy` names the job that a client works for."""
    everyone = candidates(world.attendance, run, busy, world.clock.monotonic())
    reasons = {
        one.client_id: ineligibility(one, run.spec.dataset, run.where, run.spec.updates.encoding)
        for one in everyone
    }
    eligible = [one for one in everyone if not reasons[one.client_id]]
    decision = opening(run.spec.rounds, len(eligible), len(everyone))
    return Survey(everyone, reasons, eligible, decision)


async def open_round(
    world: World, run: JobRun, busy: Mapping[str, str], purpose: RoundPurpose
) -> bool:
    """Open the job's next round if a quorum of eligible clients attends; says whether it did."""
    seen = survey(world, run, busy)
    await _note_ineligible(world, run, seen.reasons, busy)
    if not seen.decision.offers:
        await wait_for(run, f"{seen.decision.reason}{_left_out(seen)}")
        return False
    number = run.record.last_round_number + 1
    chosen = select(seen.eligible, seen.decision.offers, run.record.seed, number)
    unused = [
        seen.reasons[one.client_id] or "not drawn" for one in seen.everyone if one not in chosen
    ]
    record = await world.database.write(
        partial(
            _write_opening,
            run=run,
            number=number,
            purpose=purpose,
            chosen=chosen,
            not_selected={reason: unused.count(reason) for reason in unused},
            now=world.clock.now(),
        )
    )
    run.round = live_round(world, record)
    run.waiting_for = ""
    for live in run.round.assignments.values():
        send_assignment(world, run, live)
    told = _opened(run, purpose, seen.decision.reason)
    _log.info("round opened: %s", told, extra=log_fields(run))
    await run.announce()
    return True


def _left_out(seen: Survey) -> str:
    """Why some of those who attend cannot take part, for the operator who waits."""
    told = [f"{one.name}: {seen.reasons[one.client_id]}" for one in seen.everyone
            if seen.reasons[one.client_id]]  # fmt: skip
    if not told:
        return ""
    more = f"; and {len(told) - TOLD} more" if len(told) > TOLD else ""
    return f" ({'; '.join(told[:TOLD])}{more})"


def _opened(run: JobRun, purpose: RoundPurpose, reason: str) -> str:
    if run.spec.train.schedule is None or purpose is not RoundPurpose.TRAIN:
        return reason
    rate = directives.learning_rate(run)
    return f"{reason}, learning rate {rate.learning_rate:.6g} ({rate.reason})"


def _write_opening(
    session: Session,
    *,
    run: JobRun,
    number: int,
    purpose: RoundPurpose,
    chosen: Sequence[Candidate],
    not_selected: Mapping[str, int],
    now: datetime,
) -> RoundRecord:
    """One transaction: the clients' indices, the seeds that follow from them, and the round.

    Raises:
        ConflictError: the job was paused or ended meanwhile.
    """
    state = job_repository.by_reference(session, reference=run.record.reference).state
    if state not in (JobState.QUEUED, JobState.RUNNING):
        raise ConflictError(f"job {run.record.reference} is {state}")
    if state is JobState.QUEUED:
        job_repository.set_state(
            session,
            reference=run.record.reference,
            state=JobState.RUNNING,
            reason="its first round opened",
            now=now,
        )
    indices = round_repository.participant_indices(
        session, job_id=run.record.id, client_ids=[one.client_id for one in chosen], now=now
    )
    encodings = _encodings(session, run, chosen)
    return round_repository.open_round(
        session,
        job_id=run.record.id,
        number=number,
        purpose=purpose,
        base_version_id=run.record.latest_version_id,
        cohort=run.spec.rounds.cohort,
        quorum=run.spec.rounds.quorum,
        deadline_at=now + timedelta(seconds=run.spec.rounds.deadline_seconds),
        offers=[
            Offer(
                client,
                derived_seed(run.record.seed, "assignment", number, index),
                encodings[client],
            )
            for client, index in indices.items()
        ],
        not_selected=not_selected,
        now=now,
    )


def _encodings(session: Session, run: JobRun, chosen: Sequence[Candidate]) -> dict[str, str]:
    """The encoding of each client's update, by its link where the job leaves it open."""
    wanted = run.spec.updates.encoding
    speeds: Mapping[str, float] = {}
    slow: Mapping[str, str] = {}
    if wanted == AUTO:
        client_ids = [one.client_id for one in chosen]
        speeds = client_repository.upload_speeds(session, client_ids=client_ids)
        slow = client_repository.slow_encodings(session, client_ids=client_ids)
    return {
        one.client_id: encoding_of(
            wanted,
            one.encodings,
            run.layout,
            speeds.get(one.client_id),
            run.spec.rounds.deadline_seconds,
            slow.get(one.client_id),
        ).encoding
        for one in chosen
    }


async def _note_ineligible(
    world: World, run: JobRun, reasons: Mapping[str, str], busy: Mapping[str, str]
) -> None:
    changes = world.eligibility.changes(run.record.reference, reasons, busy)
    if changes:
        await world.database.write(
            partial(client_repository.set_ineligible, reasons=changes, now=world.clock.now())
        )
        world.eligibility.noted(changes)
