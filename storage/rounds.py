"""Rounds and the ledger: each change is checked against the legal transitions and kept whole."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Unpack

from sqlalchemy import and_, func, or_, select
from sqlalchemy.orm import Session

from headwater.errors import ConflictError, NotFoundError
from storage import blobs, events, late, ledger
from storage.records import (
    AssignmentFacts,
    AssignmentRecord,
    AssignmentState,
    Fate,
    MetricScope,
    MetricValue,
    NewVersion,
    Offer,
    ReceiptRecord,
    RoundPurpose,
    RoundRecord,
    RoundState,
    UpdateFacts,
)
from storage.schema import (
    Assignment,
    Client,
    Event,
    Job,
    Metric,
    ModelVersion,
    Participant,
    Round,
)
from storage.transitions import UNFINISHED_ASSIGNMENTS, UNFINISHED_ROUNDS, check_transition
from storage.views import round_records, select_rounds


def participant_indices(
    session: Session, *, job_id: int, client_ids: Iterable[str], now: datetime
) -> dict[str, int]:
    """Each client's index in the job; newcomers get the next ones in order of their names.

    An index is given once and never reused, so that seeds derived from it stay a client's own.

    Raises:
        NotFoundError: a client is not registered.
    """
    wanted = set(client_ids)
    query = select(Participant.client_id, Participant.client_index)
    indices = dict(session.execute(query.where(Participant.job_id == job_id)).all())
    next_index = max(indices.values(), default=-1) + 1
    newcomers = wanted - indices.keys()
    names = select(Client.name, Client.client_id).where(Client.client_id.in_(newcomers))
    # Sorted here: databases order texts by their collations, and would give other indices.
    ordered = sorted((name, client_id) for name, client_id in session.execute(names))
    for index, (_, client_id) in enumerate(ordered, next_index):
        indices[client_id] = index
        session.add(Participant(job_id=job_id, client_id=client_id, client_index=index, since=now))
    if missing := sorted(wanted - indices.keys()):
        raise NotFoundError(f"these clients are not registered: {', '.join(missing)}")
    session.flush()
    return {client_id: indices[client_id] for client_id in sorted(wanted)}


def open_round(
    session: Session,
    *,
    job_id: int,
    number: int,
    purpose: RoundPurpose,
    base_version_id: int,
    cohort: int,
    quorum: int,
    deadline_at: datetime | None,
    offers: Sequence[Offer],
    not_selected: Mapping[str, int],
    now: datetime,
    reason: str = "",
) -> RoundRecord:
    """Open a round and write an offered assignment for each offer. Returns it with its ledger.

    Raises:
        NotFoundError: a client is not registered.
        ConflictError: the job has an unfinished round, or had this one already.
    """
    job = session.get_one(Job, job_id)
    _check_free(session, job, purpose, number)
    step = Round(
        job_id=job_id,
        number=number,
        purpose=purpose,
        base_version_id=base_version_id,
        state=RoundState.OPEN,
        reason=reason,
        opened_at=now,
        deadline_at=deadline_at,
        cohort=cohort,
        quorum=quorum,
        offered=len(offers),
        not_selected=dict(not_selected),
    )
    session.add(step)
    if purpose is RoundPurpose.TRAIN:
        job.last_round_number = max(job.last_round_number, number)
    session.flush()
    client_ids = [offer.client_id for offer in offers]
    indices = participant_indices(session, job_id=job_id, client_ids=client_ids, now=now)
    ledger.write_offers(session, step, offers, indices, now)
    _record(session, step, "opened", f"{len(offers)} clients are offered a part", now)
    session.flush()
    return get(session, round_id=step.id)


def advance_assignment(
    session: Session,
    *,
    assignment_id: int,
    state: AssignmentState,
    now: datetime,
    reason: str = "",
    **facts: Unpack[AssignmentFacts],
) -> AssignmentRecord:
    """Change an assignment's state and write facts of it; with the same state, only the facts.

    An update's digest, given with `uploading`, keeps its blob from collection from then on.

    Raises:
        NotFoundError: there is no such assignment.
        ConflictError: its state may not become this one. Acceptance is `accept_update`'s.
    """
    row = ledger.find(session, assignment_id)
    before = row.bytes_down, row.bytes_up
    if state is AssignmentState.ACCEPTED:
        raise ConflictError("an assignment becomes accepted only with its update")
    if row.state != state:
        ledger.move(row, state, reason, now)
    for name, value in facts.items():
        setattr(row, name, dict(value) if isinstance(value, Mapping) else value)
    ledger.count_since(session, row, *before)
    if state is AssignmentState.REJECTED:
        ledger.record_rejection(session, row, now)
    session.flush()
    return ledger.record_of(session, assignment_id)


def accept_update(
    session: Session, *, assignment_id: int, update: UpdateFacts, now: datetime
) -> ReceiptRecord:
    """Write that a durable update was accepted; its client is told after this is committed.

    The same update again gets the same receipt, whatever became of its round since.

    Raises:
        NotFoundError: there is no such assignment.
        ConflictError: another update was accepted, or the round or assignment has ended.
    """
    row = ledger.find(session, assignment_id)
    if row.state == AssignmentState.ACCEPTED:
        return ledger.receipt_again(row, update)
    step = session.get_one(Round, row.round_id)
    if step.state != RoundState.OPEN:
        raise ConflictError(
            f"round {step.number} is {step.state}: the update of assignment {row.id} is late"
        )
    ledger.move(row, AssignmentState.ACCEPTED, "", now)
    ledger.write_update(session, row, update, now)
    session.flush()
    return ledger.receipt_of(row, now)


def extend(
    session: Session, *, round_id: int, seconds: float, reason: str, now: datetime
) -> RoundRecord:
    """Give an open round so long again: from its deadline, or from now where that is over.

    Raises:
        NotFoundError: there is no such round.
        ConflictError: it is not open, or has no deadline.
    """
    step = _round(session, round_id)
    if step.state != RoundState.OPEN or step.deadline_at is None:
        raise ConflictError(f"round {step.number} is {step.state} and cannot be extended")
    step.deadline_at = max(step.deadline_at, now) + timedelta(seconds=seconds)
    _record(session, step, "extended", reason, now)
    session.flush()
    return get(session, round_id=round_id)


def extensions(session: Session, *, round_id: int) -> int:
    """How often a round was extended."""
    query = select(func.count()).select_from(Event)
    found = session.scalar(query.where(Event.round_id == round_id, Event.kind == "round.extended"))
    return found or 0


def close(
    session: Session,
    *,
    round_id: int,
    reason: str,
    now: datetime,
    quorum: int | None = None,
    late_fates: Mapping[int, Fate] | None = None,
) -> RoundRecord:
    """Stop accepting updates: the round is closing, and the set that it folds is final.

    `quorum` lowers what it needs, by its job's policy. So does `late_fates`: with it, the round
    takes the late updates of its job that wait, and its own unfinished assignments end now, so that
    theirs can be late for the next one; they end with the round otherwise.

    Raises:
        NotFoundError: there is no such round.
        ConflictError: it is not open.
    """
    step = _round(session, round_id)
    _move_round(step, RoundState.CLOSING, reason)
    step.quorum = quorum or step.quorum
    step.closed_at = now
    if late_fates is not None:
        late.take(session, step)
        ledger.end_all(session, step, late_fates, now)
    session.flush()
    return get(session, round_id=round_id)


def commit(
    session: Session,
    *,
    round_id: int,
    version: NewVersion | None,
    metrics: Sequence[MetricValue],
    weights_in_fold: Mapping[int, float],
    fates: Mapping[int, Fate],
    now: datetime,
    reason: str = "",
) -> RoundRecord:
    """End a closing round with its result, all in this transaction. Returns it with its ledger.

    `version`: the weights that it produced, None for an evaluation. `weights_in_fold` has each
    folded assignment's weight, `fates` the end of others; one unfinished without a fate expires.
    Metrics of scope `coordinator` describe the new version, the others the base version.

    Raises:
        NotFoundError: there is no such round, or an assignment is not of it.
        ConflictError: the round is not closing, or its base version is not the newest any more, or
            an assignment whose update is not held is said to be folded.
    """
    step = _round(session, round_id)
    _move_round(step, RoundState.COMMITTED, reason or step.reason)
    rows = ledger.end_all(session, step, fates, now)
    folded = ledger.write_weights(step, rows, weights_in_fold)
    made = None if version is None else _write_version(session, step, version, now)
    _write_metrics(session, step, metrics, made)
    _total(step, rows, now)
    step.examples = sum(row.examples or 0 for row in folded)
    _record(session, step, "committed", f"{len(folded)} updates, {step.examples} examples", now)
    session.flush()
    return get(session, round_id=round_id)


def abandon(
    session: Session, *, round_id: int, reason: str, fates: Mapping[int, Fate], now: datetime
) -> RoundRecord:
    """End a round without a result; it changes no weights. Returns it with its ledger.

    Raises:
        NotFoundError: there is no such round, or an assignment is not of it.
        ConflictError: it has ended already.
    """
    step = _round(session, round_id)
    _move_round(step, RoundState.ABANDONED, reason)
    step.closed_at = step.closed_at or now
    _total(step, ledger.end_all(session, step, fates, now), now)
    _record(session, step, "abandoned", reason, now)
    session.flush()
    return get(session, round_id=round_id)


def unfinished(session: Session, *, job_id: int) -> RoundRecord | None:
    """The job's open or closing round with its ledger, to go on with after a restart."""
    query = select_rounds().where(Round.job_id == job_id, Round.state.in_(UNFINISHED_ROUNDS))
    rows = session.execute(query.order_by(Round.id)).all()
    records = round_records(session, rows, ledger=True)
    return records[0] if records else None


def abandoned_in_a_row(session: Session, *, job_id: int) -> int:
    """How many rounds were abandoned since the last commit, or since the job ran again."""
    ours = select(Round.id).where(Round.job_id == job_id)
    committed = session.scalar(
        ours.where(Round.state == RoundState.COMMITTED).order_by(Round.id.desc()).limit(1)
    )
    resumed_at = session.scalar(
        select(func.max(Event.at)).where(Event.job_id == job_id, Event.kind == "job.running")
    )
    since = ours.where(Round.state == RoundState.ABANDONED, Round.id > (committed or 0))
    if resumed_at is not None:
        since = since.where(Round.opened_at >= resumed_at)
    return session.scalar(select(func.count()).select_from(since.subquery())) or 0


def pending_assignments(session: Session) -> set[int]:
    """The ids of the assignments that may still bring an update, over all jobs."""
    pending = and_(Round.state.in_(UNFINISHED_ROUNDS), Assignment.state.in_(UNFINISHED_ASSIGNMENTS))
    query = select(Assignment.id).join(Round, Round.id == Assignment.round_id)
    return set(session.scalars(query.where(or_(pending, late.arriving()))))


def get(session: Session, *, round_id: int) -> RoundRecord:
    """One round with its ledger, by its id.

    Raises:
        NotFoundError: there is none.
    """
    rows = session.execute(select_rounds().where(Round.id == round_id)).all()
    if not rows:
        raise NotFoundError(f"there is no round of id {round_id}")
    return round_records(session, rows, ledger=True)[0]


def assignment(session: Session, *, assignment_id: int) -> AssignmentRecord:
    """One row of the ledger, by its id.

    Raises:
        NotFoundError: there is none.
    """
    return ledger.record_of(session, ledger.find(session, assignment_id).id)


def _check_free(session: Session, job: Job, purpose: RoundPurpose, number: int) -> None:
    rounds = select(Round).where(Round.job_id == job.id)
    under_way = session.scalar(rounds.where(Round.state.in_(UNFINISHED_ROUNDS)))
    if under_way is not None:
        raise ConflictError(f"round {under_way.number} of job {job.reference} has not ended")
    if session.scalar(rounds.where(Round.purpose == purpose, Round.number == number)) is not None:
        raise ConflictError(f"job {job.reference} had its {purpose} round {number} already")


def _move_round(step: Round, state: RoundState, reason: str) -> None:
    check_transition("round", RoundState(step.state), state, str(step.number))
    step.state, step.reason = state, reason


def _write_version(
    session: Session, step: Round, version: NewVersion, now: datetime
) -> ModelVersion:
    job = session.get_one(Job, step.job_id)
    base = session.get_one(ModelVersion, step.base_version_id)
    if base.job_id != job.id or base.number != job.latest_version:
        raise ConflictError(
            f"round {step.number} of job {job.reference} began from version {base.number}, and "
            f"version {job.latest_version} is the newest"
        )
    _register(session, version, now)
    made = ModelVersion(
        job_id=job.id,
        number=base.number + 1,
        weights_digest=version.weights_digest,
        size_bytes=version.size_bytes,
        optimizer_state_digest=version.optimizer_state_digest,
        round_id=step.id,
        parent_version_id=base.id,
        created_at=now,
    )
    session.add(made)
    job.latest_version = made.number
    job.rounds_committed += 1
    session.flush()
    return made


def _register(session: Session, version: NewVersion, now: datetime) -> None:
    found = (
        ("weights", version.weights_digest, version.size_bytes),
        ("optimizer state", version.optimizer_state_digest, version.optimizer_state_size_bytes),
    )
    for kind, digest, size_bytes in found:
        if digest is not None:
            blobs.register(session, digest=digest, size_bytes=size_bytes, kind=kind, now=now)


def _write_metrics(
    session: Session, step: Round, metrics: Sequence[MetricValue], made: ModelVersion | None
) -> None:
    for metric in metrics:
        of_new = metric.scope is MetricScope.COORDINATOR and made is not None
        session.add(
            Metric(
                job_id=step.job_id,
                round_id=step.id,
                version_id=made.id if of_new and made else step.base_version_id,
                scope=metric.scope,
                name=metric.name,
                value=metric.value,
                examples=metric.examples,
            )
        )


def _total(step: Round, rows: Mapping[int, Assignment], now: datetime) -> None:
    step.ended_at = now
    step.seconds = (now - step.opened_at).total_seconds()
    own = [row for row in rows.values() if row.round_id == step.id]
    step.accepted = sum(row.state == AssignmentState.ACCEPTED for row in own)
    step.bytes_down = sum(row.bytes_down for row in own)
    step.bytes_up = sum(row.bytes_up for row in own)


def _record(session: Session, step: Round, verb: str, message: str, now: datetime) -> None:
    purpose = "evaluation " if step.purpose == RoundPurpose.EVALUATE else ""
    events.record(
        session,
        kind=f"round.{verb}",
        message=f"{purpose}round {step.number} was {verb}: {message}",
        now=now,
        job_id=step.job_id,
        round_id=step.id,
    )


def _round(session: Session, round_id: int) -> Round:
    step = session.get(Round, round_id)
    if step is None:
        raise NotFoundError(f"there is no round of id {round_id}")
    return step
