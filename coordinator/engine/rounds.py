"""A round from its opening to its commit: the decisions of `policy`, carried out."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from math import inf
from types import MappingProxyType

from sqlalchemy.orm import Session

from coordinator.engine import directives
from coordinator.engine.candidates import candidates
from coordinator.engine.fold import Folded, fold_round, held_out_metrics
from coordinator.engine.live import ENCODING, JobRun, LiveAssignment, LiveRound
from coordinator.engine.measures import metric_series, round_metrics
from coordinator.engine.policy import Opening, Progress, guarding, opening
from coordinator.engine.seeds import derived_seed
from coordinator.engine.selection import Candidate, ineligibility, select
from coordinator.engine.world import World
from headwater import durable_files
from headwater.errors import ConflictError, UpdateError
from storage import blobs as blob_repository
from storage import clients as client_repository
from storage import events as event_repository
from storage import jobs as job_repository
from storage import rounds as round_repository
from storage.records import (
    AssignmentRecord,
    AssignmentState,
    Fate,
    JobState,
    MetricScope,
    MetricValue,
    NewVersion,
    Offer,
    RoundPurpose,
    RoundRecord,
)

PIN_HOLDER = "coordinator"
"""Who pins weights between their writing and the commit that refers to them."""

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
        one.client_id: ineligibility(one, run.spec.dataset, run.where, ENCODING) for one in everyone
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
            client_ids=[one.client_id for one in chosen],
            not_selected={reason: unused.count(reason) for reason in unused},
            now=world.clock.now(),
        )
    )
    run.round = live_round(world, record)
    run.waiting_for = ""
    for live in run.round.assignments.values():
        send_assignment(world, run, live)
    _log.info("round opened: %s", _opened(run, purpose, seen.decision.reason), extra=_fields(run))
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
    client_ids: Sequence[str],
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
        session, job_id=run.record.id, client_ids=client_ids, now=now
    )
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
            Offer(client, derived_seed(run.record.seed, "assignment", number, index))
            for client, index in indices.items()
        ],
        not_selected=not_selected,
        now=now,
    )


def live_round(world: World, record: RoundRecord, extensions: int = 0) -> LiveRound:
    """A round that has not ended, as memory holds it; leases begin now."""
    lease_ends = world.clock.monotonic() + world.lease_seconds
    return LiveRound(
        record,
        {
            one.id: LiveAssignment(one, one.state, lease_ends, bytes_down=one.bytes_down)
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


def round_progress(world: World, run: JobRun) -> Progress:
    """How far the job's open round is."""
    assert run.round is not None
    record, pending = run.round.record, run.round.pending
    past = -inf
    if record.deadline_at is not None:
        past = (world.clock.now() - record.deadline_at).total_seconds()
    uploading = sum(one.state is AssignmentState.UPLOADING for one in pending)
    return Progress(run.round.accepted, len(pending), uploading, past, run.round.extensions)


async def extend_round(world: World, run: JobRun, reason: str) -> None:
    """Give an open round as long again."""
    assert run.round is not None
    seconds = run.spec.rounds.deadline_seconds
    run.round.record = await world.database.write(
        partial(
            round_repository.extend,
            round_id=run.round.record.id,
            seconds=seconds,
            reason=reason,
            now=world.clock.now(),
        )
    )
    run.round.extensions += 1
    _log.warning("round extended by %g s: %s", seconds, reason, extra=_fields(run))
    await run.announce()


async def close_round(world: World, run: JobRun, reason: str) -> None:
    """Fold the accepted updates, evaluate the result and commit it; or abandon it with evidence."""
    assert run.round is not None
    record = await world.database.write(
        partial(
            round_repository.close,
            round_id=run.round.record.id,
            reason=reason,
            quorum=min(run.round.record.quorum, max(1, run.round.accepted)),
            now=world.clock.now(),
        )
    )
    run.round.record = record  # what follows may be repeated, and begins from here
    await finish_round(world, run, record)


async def finish_round(world: World, run: JobRun, record: RoundRecord) -> None:
    """Carry a closing round to its end. Safe to repeat after a restart: all it reads is durable."""
    assert run.round is not None
    folded = Folded()
    if record.purpose is RoundPurpose.TRAIN:
        folded = await world.compute(fold_round, world, run, record)
        if folded.fault:
            await abandon_round(world, run, folded.fault, folded.unsound)
            return
    held_out, unmeasured = await world.compute(held_out_metrics, world, run, folded)
    fault = await _guarded(world, run, held_out)
    if fault:
        await _abandon_model(world, run, folded, fault)
    if folded.temporary is not None:
        await _keep_weights(world, folded)
    await _commit(world, run, record, folded, held_out, unmeasured)


async def _guarded(world: World, run: JobRun, held_out: Sequence[MetricValue]) -> str:
    """Why the new version must not be committed; empty when it may."""
    guard, best = run.spec.rounds.guard, None
    if guard is not None:
        series = await world.database.read(
            partial(metric_series, run=run, metric=guard.metric, held_out=True)
        )
        best = (min if guard.mode == "min" else max)(series, default=None)
    return guarding(guard, {one.name: one.value for one in held_out}, best)


async def _abandon_model(world: World, run: JobRun, folded: Folded, fault: str) -> None:
    """Abandon a round for what it made.

    Raises:
        UpdateError: always, so that the job pauses: the next round would begin from the same
            version with the same clients.
    """
    if folded.temporary is not None:
        await world.work(durable_files.remove, folded.temporary)
    assert run.round is not None
    number, version = run.round.record.number, run.record.latest_version
    await abandon_round(world, run, fault, folded.unsound)
    raise UpdateError(
        f"round {number} was abandoned: {fault}; version {version} stays. Look at the updates of "
        "that round, then resume the job"
    )


async def _keep_weights(world: World, folded: Folded) -> None:
    """The new weights become a blob before anything refers to them, pinned against collection."""
    assert folded.temporary is not None
    try:
        await world.database.write(
            partial(
                blob_repository.pin, digest=folded.digest, holder=PIN_HOLDER, now=world.clock.now()
            )
        )
        await world.work(world.blobs.adopt, folded.temporary, folded.digest)
    except BaseException:  # the round is folded again later, and leaves no file behind each time
        durable_files.remove(folded.temporary)
        raise


async def _commit(
    world: World,
    run: JobRun,
    record: RoundRecord,
    folded: Folded,
    held_out: Sequence[MetricValue],
    unmeasured: str,
) -> None:
    assert run.round is not None
    fates = _fates(run.round, run.spec.rounds.cohort) | _rejections(folded.unsound)
    accepted = [one for one in record.assignments if one.id not in folded.unsound]
    measured = [*round_metrics(accepted), *_scheduled(run, record, accepted)]
    await world.database.write(
        partial(
            _write_commit,
            record=record,
            folded=folded,
            metrics=[*measured, *held_out],
            unmeasured=unmeasured if unmeasured != run.unmeasured else "",
            fates=fates,
            now=world.clock.now(),
        )
    )
    if unmeasured:
        _log.warning("not measured: %s", unmeasured, extra=_fields(run))
    run.abandoned_in_a_row, run.unmeasured = 0, unmeasured
    _log.info("round committed: %s", record.reason, extra=_fields(run))
    _tell(world, run, fates, set(folded.shares))
    await refresh(world, run)


def _scheduled(
    run: JobRun, record: RoundRecord, assignments: Sequence[AssignmentRecord]
) -> list[MetricValue]:
    """The learning rate that a schedule gave the round, kept beside what was measured with it."""
    if run.spec.train.schedule is None or record.purpose is not RoundPurpose.TRAIN:
        return []
    examples = sum(one.examples or 0 for one in assignments)
    rate = directives.learning_rate(run).learning_rate
    return [MetricValue(MetricScope.TRAIN, "learning_rate", rate, examples)]


def _write_commit(
    session: Session,
    *,
    record: RoundRecord,
    folded: Folded,
    metrics: Sequence[MetricValue],
    unmeasured: str,
    fates: Mapping[int, Fate],
    now: datetime,
) -> RoundRecord:
    """One transaction: the version, its metrics, the ledger, and the end of the weights' pin."""
    trained = record.purpose is RoundPurpose.TRAIN
    committed = round_repository.commit(
        session,
        round_id=record.id,
        version=NewVersion(folded.digest, folded.size_bytes) if trained else None,
        metrics=metrics,
        weights_in_fold=folded.shares,
        fates=fates,
        now=now,
    )
    if trained:
        blob_repository.unpin(session, digest=folded.digest, holder=PIN_HOLDER)
    if unmeasured:
        event_repository.record(
            session,
            kind="evaluation.failed",
            message=unmeasured,
            now=now,
            job_id=record.job_id,
            round_id=record.id,
        )
    return committed


async def abandon_round(
    world: World, run: JobRun, reason: str, unsound: Mapping[int, str] = MappingProxyType({})
) -> None:
    """End a round without a new version; the reason stands in the ledger."""
    assert run.round is not None
    fates = _fates(run.round, run.spec.rounds.cohort) | _rejections(unsound)
    await world.database.write(
        partial(
            round_repository.abandon,
            round_id=run.round.record.id,
            reason=reason,
            fates=fates,
            now=world.clock.now(),
        )
    )
    run.abandoned_in_a_row += 1
    _log.warning("round abandoned: %s", reason, extra=_fields(run))
    _tell(world, run, fates, set())
    await refresh(world, run)


def _fates(round_: LiveRound, cohort: int) -> dict[int, Fate]:
    """How the assignments end that are still pending when their round does."""
    complete = round_.accepted >= cohort
    state = AssignmentState.RELEASED if complete else AssignmentState.EXPIRED
    reason = "the cohort was complete" if complete else "the round ended before its update came"
    return {one.record.id: Fate(state, reason, bytes_down=one.bytes_down) for one in round_.pending}


def _rejections(unsound: Mapping[int, str]) -> dict[int, Fate]:
    """How accepted assignments end whose updates the fold refused."""
    return {at: Fate(AssignmentState.REJECTED, reason) for at, reason in unsound.items()}


def _tell(world: World, run: JobRun, fates: Mapping[int, Fate], folded: set[int]) -> None:
    assert run.round is not None
    for live in run.round.assignments.values():
        attendee = world.attendance.get(live.record.client_id)
        if attendee is None:
            continue
        fate = fates.get(live.record.id)
        if fate is not None and fate.state is AssignmentState.REJECTED:
            attendee.push(
                directives.fate_message(live.record.id, fate.state, fate.reason, folded=False)
            )
        elif fate is not None:
            attendee.push(directives.cancel_message(live.record.id, fate.reason))
        elif live.state is AssignmentState.ACCEPTED:
            attendee.push(
                directives.fate_message(
                    live.record.id, live.state, "", folded=live.record.id in folded
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


async def _note_ineligible(
    world: World, run: JobRun, reasons: Mapping[str, str], busy: Mapping[str, str]
) -> None:
    changes = world.eligibility.changes(run.record.reference, reasons, busy)
    if changes:
        await world.database.write(
            partial(client_repository.set_ineligible, reasons=changes, now=world.clock.now())
        )
        world.eligibility.noted(changes)


async def wait_for(run: JobRun, reason: str) -> None:
    """Say what the job waits for, where that has changed."""
    if run.waiting_for != reason:
        run.waiting_for = reason
        _log.info("%s", reason, extra=_fields(run))
        await run.announce()


def _fields(run: JobRun) -> dict[str, object]:
    fields: dict[str, object] = {"job": run.record.reference}
    if run.round is not None:
        fields["round"] = run.round.record.number
    return fields
