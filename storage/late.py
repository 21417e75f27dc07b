"""Updates that come after their round has ended: noted, or kept for the next round to fold.

A late update that is kept waits, acknowledged, for the next training round of its job that closes.
That round takes it, whatever becomes of the round then: `folded_round_id` says which it was, and
`weight` what part it had, none where the round was abandoned.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import ColumnElement, Select, and_, or_, select
from sqlalchemy.orm import Session

from headwater.errors import ConflictError
from storage import ledger
from storage.records import (
    AssignmentRecord,
    AssignmentState,
    ReceiptRecord,
    RoundPurpose,
    UpdateFacts,
)
from storage.schema import Assignment, Job, ModelVersion, Round
from storage.transitions import UNFINISHED_JOBS

FOLDS = Job.spec[("rounds", "late")].as_string() == "fold"
"""SQL for a job that folds its late updates."""

_KEPT = and_(
    Assignment.state == AssignmentState.LATE,
    # A digest alone is an update that was offered and never came.
    Assignment.update_size_bytes.is_not(None),
)
HELD = or_(Assignment.state == AssignmentState.ACCEPTED, _KEPT)
"""SQL for an update that was acknowledged, as `AssignmentRecord.is_held`."""


def waiting() -> ColumnElement[bool]:
    """SQL for late updates that the next round of their job takes."""
    unfinished = _rounds_of_jobs(Job.state.in_(UNFINISHED_JOBS))
    return and_(_KEPT, Assignment.folded_round_id.is_(None), Assignment.round_id.in_(unfinished))


def arriving() -> ColumnElement[bool]:
    """SQL for assignments whose round has ended, and whose update may still be on its way."""
    return and_(
        Assignment.state == AssignmentState.EXPIRED,
        Assignment.update_digest.is_not(None),
        Assignment.round_id.in_(_rounds_of_jobs(Job.state.in_(UNFINISHED_JOBS), FOLDS)),
    )


def _rounds_of_jobs(*conditions: ColumnElement[bool]) -> Select[int]:
    return select(Round.id).join(Job, Job.id == Round.job_id).where(*conditions)


def note(session: Session, *, assignment_id: int, now: datetime) -> AssignmentRecord:
    """Write that an update came too late, and how many versions were made since. It is not kept.

    Raises:
        NotFoundError: there is no such assignment.
        ConflictError: it did not expire.
    """
    row = ledger.find(session, assignment_id)
    _move(session, row, "", now)
    session.flush()
    return ledger.record_of(session, assignment_id)


def accept(
    session: Session, *, assignment_id: int, update: UpdateFacts, now: datetime
) -> ReceiptRecord:
    """Write that a durable update came late, for the next round to take.

    The same update again gets the same receipt.

    Raises:
        NotFoundError: there is no such assignment.
        ConflictError: another update was kept, its assignment did not expire, or its job has ended.
    """
    row = ledger.find(session, assignment_id)
    if row.state == AssignmentState.LATE and row.update_size_bytes is not None:
        return ledger.receipt_again(row, update)
    step = session.get_one(Round, row.round_id)
    job = session.get_one(Job, step.job_id)
    if job.state not in UNFINISHED_JOBS:
        raise ConflictError(f"job {job.reference} is {job.state} and folds no late update")
    _move(session, row, "; the next round takes it", now)
    before = row.bytes_down, row.bytes_up
    ledger.write_update(session, row, update, now)
    ledger.count_since(session, row, *before)
    row.update_collected = False
    session.flush()
    return ledger.receipt_of(row, now)


def take(session: Session, step: Round) -> None:
    """Give the late updates that wait to a closing training round, for good."""
    if step.purpose != RoundPurpose.TRAIN:
        return
    ours = select(Round.id).where(Round.job_id == step.job_id)
    query = select(Assignment).where(waiting(), Assignment.round_id.in_(ours))
    for row in session.scalars(query.order_by(Assignment.id)):
        row.folded_round_id = step.id
        row.staleness = _staleness(session, row, step.base_version_id)
        row.reason = f"its update came {_since(row.staleness)}; round {step.number} took it"


def taken(session: Session, step: Round) -> Sequence[Assignment]:
    """The late updates that a round took, in order of their ids."""
    query = select(Assignment).where(Assignment.folded_round_id == step.id)
    return session.scalars(query.order_by(Assignment.id)).all()


def _move(session: Session, row: Assignment, then: str, now: datetime) -> None:
    step = session.get_one(Round, row.round_id)
    newest = select(ModelVersion.id).join(Job, Job.id == ModelVersion.job_id)
    is_newest = ModelVersion.number == Job.latest_version
    version_id = session.scalars(newest.where(Job.id == step.job_id, is_newest)).one()
    row.staleness = _staleness(session, row, version_id)
    reason = f"its update came after the round had ended, {_since(row.staleness)}{then}"
    ledger.move(row, AssignmentState.LATE, reason, now)


def _staleness(session: Session, row: Assignment, version_id: int) -> int:
    """How many versions lie between the weights that an update changes and this one."""
    base_id = session.get_one(Round, row.round_id).base_version_id
    base = session.get_one(ModelVersion, base_id)
    return session.get_one(ModelVersion, version_id).number - base.number


def _since(staleness: int) -> str:
    return f"{staleness} version{'' if staleness == 1 else 's'} later"
