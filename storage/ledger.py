"""The rows of assignments, for `rounds`: how they begin, move and end."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from headwater.errors import ConflictError, NotFoundError
from storage import blobs, events
from storage.records import (
    AssignmentRecord,
    AssignmentState,
    Fate,
    Offer,
    ReceiptRecord,
    UpdateFacts,
)
from storage.schema import Assignment, Round
from storage.transitions import UNFINISHED_ASSIGNMENTS, check_transition
from storage.views import assignment_record, select_assignments

HELD = (AssignmentState.ACCEPTED, AssignmentState.LATE)

_STAMPS = {AssignmentState.TRAINING: "training_at", AssignmentState.UPLOADING: "uploading_at"}


def find(session: Session, assignment_id: int) -> Assignment:
    """The row of an assignment.

    Raises:
        NotFoundError: there is none of this id.
    """
    row = session.get(Assignment, assignment_id)
    if row is None:
        raise NotFoundError(f"there is no assignment of id {assignment_id}")
    return row


def record_of(session: Session, assignment_id: int) -> AssignmentRecord:
    """An assignment that is there, as a record."""
    query = select_assignments().where(Assignment.id == assignment_id)
    row, name, number, folded = session.execute(query).one()
    return assignment_record(row, name, number, folded)


def write_offers(
    session: Session,
    step: Round,
    offers: Sequence[Offer],
    indices: Mapping[str, int],
    now: datetime,
) -> None:
    """Write an offered assignment for each offer, in order of the clients' indices."""
    session.add_all(
        Assignment(
            round_id=step.id,
            client_id=offer.client_id,
            client_index=indices[offer.client_id],
            state=AssignmentState.OFFERED,
            reason="",
            offered_at=now,
            seed=offer.seed,
            update_encoding=offer.encoding,
        )
        for offer in sorted(offers, key=lambda offer: indices[offer.client_id])
    )


def move(row: Assignment, state: AssignmentState, reason: str, now: datetime) -> None:
    """Change the state of an assignment, if that is legal, and write when.

    Raises:
        ConflictError: its state may not become this one.
    """
    check_transition("assignment", AssignmentState(row.state), state, str(row.id))
    row.state, row.reason = state, reason
    setattr(row, _STAMPS.get(state, "finished_at"), now)


def receipt_of(row: Assignment, now: datetime) -> ReceiptRecord:
    """The receipt of an update that has just been written."""
    return ReceiptRecord(
        row.id,
        AssignmentState(row.state),
        row.update_digest or "",
        row.update_size_bytes or 0,
        now,
        repeated=False,
    )


def receipt_again(row: Assignment, update: UpdateFacts) -> ReceiptRecord:
    """The receipt of an update that was accepted before.

    Raises:
        ConflictError: it was another update.
    """
    if row.update_digest != update.digest:
        raise ConflictError(
            f"assignment {row.id} has the update {row.update_digest} {row.state}: "
            f"{update.digest} is another and is refused"
        )
    accepted_at = row.finished_at or row.offered_at
    return replace(receipt_of(row, accepted_at), repeated=True)


def write_update(session: Session, row: Assignment, update: UpdateFacts, now: datetime) -> None:
    """Write what is known of an acknowledged update, and refer to its blob."""
    if update.digest:  # an evaluation brings metrics and no update
        blobs.register(
            session, digest=update.digest, size_bytes=update.size_bytes, kind="update", now=now
        )
        row.update_digest, row.update_size_bytes = update.digest, update.size_bytes
    row.update_encoding, row.update_norm = update.encoding, update.update_norm
    row.unencoded_size_bytes, row.encoding_error = (
        update.unencoded_size_bytes,
        update.encoding_error,
    )
    row.residual_norm, row.residual_age_rounds = update.residual_norm, update.residual_age_rounds
    row.examples = update.examples
    row.metrics_before, row.metrics_after = dict(update.metrics_before), dict(update.metrics_after)
    row.fetch_seconds, row.train_seconds = update.fetch_seconds, update.train_seconds
    row.upload_seconds = update.upload_seconds
    row.bytes_down, row.bytes_up = update.bytes_down, update.bytes_up


def count_since(session: Session, row: Assignment, bytes_down: int, bytes_up: int) -> None:
    """Add what moved for an assignment since it had these to its round, if that has its totals."""
    step = session.get_one(Round, row.round_id)
    if step.ended_at is not None:
        step.bytes_down += row.bytes_down - bytes_down
        step.bytes_up += row.bytes_up - bytes_up


def end_all(
    session: Session, step: Round, fates: Mapping[int, Fate], now: datetime
) -> dict[int, Assignment]:
    """End each unfinished assignment of a round, by its fate if it has one.

    Returns all of them, and the late ones that the round took. Of those that have ended, only one
    whose update is held still takes a fate, and only its rejection:
    otherwise the first end counts, since an update may be accepted, and a client may decline or
    fail, while its round's end is being decided.

    Raises:
        NotFoundError: a fate is for an assignment of another round.
    """
    ours = or_(Assignment.round_id == step.id, Assignment.folded_round_id == step.id)
    rows = select(Assignment).where(ours).order_by(Assignment.id)
    ledger = {row.id: row for row in session.scalars(rows)}
    if strangers := sorted(fates.keys() - ledger.keys()):
        raise NotFoundError(f"round {step.number} has no assignments {strangers}")
    default = Fate(AssignmentState.EXPIRED, "no answer before the round ended")
    for row in ledger.values():
        fate = fates.get(row.id, default)
        is_rejected = fate.state is AssignmentState.REJECTED
        is_overruled = row.state in HELD and is_rejected
        if is_overruled or row.state in UNFINISHED_ASSIGNMENTS:
            move(row, fate.state, fate.reason, now)
            row.evidence = fate.evidence
            row.bytes_down = max(row.bytes_down, fate.bytes_down)
            if is_rejected:
                record_rejection(session, row, now)
    return ledger


def write_weights(
    step: Round, ledger: Mapping[int, Assignment], weights_in_fold: Mapping[int, float]
) -> list[Assignment]:
    """Write what the fold made of each update, and return the rows that were folded.

    Raises:
        NotFoundError: an assignment is not of this round.
        ConflictError: its update was neither accepted nor taken.
    """
    for assignment_id, weight in weights_in_fold.items():
        row = ledger.get(assignment_id)
        if row is None:
            raise NotFoundError(f"round {step.number} has no assignment {assignment_id}")
        if row.state not in HELD:
            raise ConflictError(f"assignment {assignment_id} is {row.state}: it has no weight")
        row.weight = weight
    return [ledger[assignment_id] for assignment_id in weights_in_fold]


def record_rejection(session: Session, row: Assignment, now: datetime) -> None:
    """Add the event of an update that was rejected."""
    step = session.get_one(Round, row.round_id)
    events.record(
        session,
        kind="update.rejected",
        message=f"an update of round {step.number} was rejected: {row.reason}",
        now=now,
        job_id=step.job_id,
        round_id=step.id,
        client_id=row.client_id,
        data={"assignment_id": row.id, "evidence": row.evidence},
    )
