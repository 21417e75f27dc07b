"""How a round ends: the decisions of `policy` about an open round, carried out."""

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import partial
from math import inf
from types import MappingProxyType

from sqlalchemy.orm import Session

from coordinator.engine import directives
from coordinator.engine.fates import fates_of, part, rejections, tell_fates
from coordinator.engine.fold import Folded, fold_round
from coordinator.engine.held_out import held_out_metrics
from coordinator.engine.late import goes_on, part_from_old
from coordinator.engine.live import JobRun
from coordinator.engine.measures import metric_series, round_metrics
from coordinator.engine.policy import Progress, guarding
from coordinator.engine.rounds import log_fields, refresh
from coordinator.engine.world import World
from headwater import durable_files
from headwater.errors import UpdateError
from storage import blobs as blob_repository
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
    RoundPurpose,
    RoundRecord,
)

PIN_HOLDER = "coordinator"
"""Who pins a version's blobs between their writing and the commit that refers to them."""

_log = logging.getLogger("headwater.round")


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
    _log.warning("round extended by %g s: %s", seconds, reason, extra=log_fields(run))
    await run.announce()


async def close_round(world: World, run: JobRun, reason: str) -> None:
    """Fold the accepted updates, evaluate the result and commit it; or abandon it with evidence."""
    assert run.round is not None
    fates = None
    if run.spec.rounds.late == "fold":
        fates = fates_of(run.round, run.spec.rounds.cohort)
    record = await world.database.write(
        partial(
            round_repository.close,
            round_id=run.round.record.id,
            reason=reason,
            quorum=min(run.round.record.quorum, max(1, run.round.accepted)),
            late_fates=fates,
            now=world.clock.now(),
        )
    )
    run.round.record = record  # what follows may be repeated, and begins from here
    part(world, run, fates or {}, going_on=goes_on(run, made_version=True))
    part_from_old(world, run)
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
    await _keep_blobs(world, folded)
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
    for one in folded.blobs:
        await world.work(durable_files.remove, one.temporary)
    assert run.round is not None
    number, version = run.round.record.number, run.record.latest_version
    pauses = (
        f"round {number} was abandoned: {fault}; version {version} stays. Look at the updates of "
        "that round, then resume the job"
    )
    await abandon_round(world, run, fault, folded.unsound, pauses)
    raise UpdateError(pauses)


async def _keep_blobs(world: World, folded: Folded) -> None:
    """What is new becomes blobs before anything refers to them, pinned against collection."""
    try:
        for one in folded.blobs:
            await world.database.write(
                partial(
                    blob_repository.pin, digest=one.digest, holder=PIN_HOLDER, now=world.clock.now()
                )
            )
            await world.work(world.blobs.adopt, one.temporary, one.digest)
    except BaseException:  # the round is folded again later, and leaves no file behind each time
        for one in folded.blobs:
            durable_files.remove(one.temporary)
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
    fates = fates_of(run.round, run.spec.rounds.cohort) | rejections(folded.unsound)
    accepted = [one for one in record.assignments if one.id not in folded.unsound]
    measured = [*round_metrics(accepted), *_scheduled(run, record, accepted)]
    committed = await world.database.write(
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
        _log.warning("not measured: %s", unmeasured, extra=log_fields(run))
    run.abandoned_in_a_row, run.unmeasured = 0, unmeasured
    _log.info("round committed: %s", record.reason, extra=log_fields(run))
    part(world, run, fates, going_on=False)
    tell_fates(world, run.round, committed)
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
    """One transaction: the version, its metrics, the ledger, and the end of its blobs' pins."""
    committed = round_repository.commit(
        session,
        round_id=record.id,
        version=_version(folded),
        metrics=metrics,
        weights_in_fold=folded.shares,
        fates=fates,
        now=now,
    )
    for one in folded.blobs:
        blob_repository.unpin(session, digest=one.digest, holder=PIN_HOLDER)
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


def _version(folded: Folded) -> NewVersion | None:
    if folded.model is None:  # an evaluation
        return None
    state = folded.optimizer_state
    return NewVersion(
        folded.model.digest,
        folded.model.size_bytes,
        optimizer_state_digest=state.digest if state else None,
        optimizer_state_size_bytes=state.size_bytes if state else 0,
    )


async def abandon_round(
    world: World,
    run: JobRun,
    reason: str,
    unsound: Mapping[int, str] = MappingProxyType({}),
    pauses: str = "",
) -> None:
    """End a round without a new version; the reason stands in the ledger.

    With `pauses` the job pauses in the same write, for that reason.
    """
    assert run.round is not None
    fates = fates_of(run.round, run.spec.rounds.cohort) | rejections(unsound)
    abandoned = await world.database.write(
        partial(
            _write_abandonment,
            run=run,
            round_id=run.round.record.id,
            reason=reason,
            fates=fates,
            pauses=pauses,
            now=world.clock.now(),
        )
    )
    run.abandoned_in_a_row += 1
    _log.warning("round abandoned: %s", reason, extra=log_fields(run))
    part(world, run, fates, going_on=goes_on(run, made_version=False))
    tell_fates(world, run.round, abandoned)
    await refresh(world, run)


def _write_abandonment(
    session: Session,
    *,
    run: JobRun,
    round_id: int,
    reason: str,
    fates: Mapping[int, Fate],
    pauses: str,
    now: datetime,
) -> RoundRecord:
    """One transaction: the round's end, and the pause that keeps the next one from beginning."""
    abandoned = round_repository.abandon(
        session, round_id=round_id, reason=reason, fates=fates, now=now
    )
    reference = run.record.reference
    job = job_repository.by_reference(session, reference=reference)
    if pauses and job.state in (JobState.QUEUED, JobState.RUNNING):
        job_repository.set_state(
            session, reference=reference, state=JobState.PAUSED, reason=pauses, now=now
        )
    return abandoned
