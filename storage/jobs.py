"""Jobs: how they are submitted and how they change state."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import exists, or_, select
from sqlalchemy.orm import Session

from headwater.errors import ConflictError
from storage import blobs, events
from storage.names import free_name, slug, unknown
from storage.records import JobRecord, JobState
from storage.schema import Job, ModelVersion, Plan, Round
from storage.transitions import UNFINISHED_JOBS, UNFINISHED_ROUNDS, check_transition
from storage.views import job_record, select_jobs


def submit(
    session: Session,
    *,
    name: str,
    job_file: str,
    spec: Mapping[str, Any],
    plan_digest: str,
    dataset: str,
    seed: int,
    weights_digest: str,
    weights_size_bytes: int,
    now: datetime,
    parent_version_id: int | None = None,
) -> JobRecord:
    """Make a queued job and its model version 0, whose weights' blob is durable already.

    The reference is the name as a slug, or the first free of SLUG-2, SLUG-3, …

    Raises:
        ConflictError: the plan or the parent version is not known.
    """
    if session.get(Plan, plan_digest) is None:
        raise ConflictError(f"the job {name!r} names plan {plan_digest}, which was not sent")
    if parent_version_id and session.get(ModelVersion, parent_version_id) is None:
        raise ConflictError(f"the job {name!r} starts from version {parent_version_id}: unknown")
    job = Job(
        reference=_free_reference(session, name),
        name=name,
        job_file=job_file,
        spec=dict(spec),
        plan_digest=plan_digest,
        dataset=dataset,
        seed=seed,
        state=JobState.QUEUED,
        state_reason="submitted",
        created_at=now,
    )
    session.add(job)
    blobs.register(
        session, digest=weights_digest, size_bytes=weights_size_bytes, kind="weights", now=now
    )
    session.flush()
    session.add(
        ModelVersion(
            job_id=job.id,
            number=0,
            weights_digest=weights_digest,
            size_bytes=weights_size_bytes,
            parent_version_id=parent_version_id,
            created_at=now,
        )
    )
    events.record(
        session,
        kind="job.submitted",
        message=f"job {job.reference} was submitted",
        now=now,
        job_id=job.id,
    )
    session.flush()
    return by_reference(session, reference=job.reference)


def set_state(
    session: Session, *, reference: str, state: JobState, reason: str, now: datetime
) -> JobRecord:
    """Change a job's state.

    Raises:
        NotFoundError: there is no such job.
        ConflictError: its state may not become this one.
    """
    job = find(session, reference)
    check_transition("job", JobState(job.state), state, job.reference)
    job.state, job.state_reason = state, reason
    if state is JobState.RUNNING and job.started_at is None:
        job.started_at = now
    if state not in UNFINISHED_JOBS:
        job.ended_at = now
    events.record(
        session,
        kind=f"job.{state}",
        message=f"job {reference} is {state}: {reason}",
        now=now,
        job_id=job.id,
    )
    session.flush()
    return by_reference(session, reference=reference)


def unfinished(session: Session) -> list[JobRecord]:
    """The jobs that are queued, running or paused, oldest first, or that have a round to end.

    A job may be cancelled and its coordinator stop before the round under way is abandoned.
    """
    has_round = exists().where(Round.job_id == Job.id, Round.state.in_(UNFINISHED_ROUNDS))
    query = select_jobs().where(or_(Job.state.in_(UNFINISHED_JOBS), has_round)).order_by(Job.id)
    return [job_record(row) for row in session.execute(query)]


def by_reference(session: Session, *, reference: str) -> JobRecord:
    """One job.

    Raises:
        NotFoundError: there is none of this reference.
    """
    row = session.execute(select_jobs().where(Job.reference == reference)).one_or_none()
    if row is None:
        raise unknown("job", reference, session.scalars(select(Job.reference)))
    return job_record(row)


def find(session: Session, reference: str) -> Job:
    """The row of a job, for the other repositories.

    Raises:
        NotFoundError: there is none of this reference.
    """
    job = session.scalar(select(Job).where(Job.reference == reference))
    if job is None:
        raise unknown("job", reference, session.scalars(select(Job.reference)))
    return job


def _free_reference(session: Session, name: str) -> str:
    wanted = slug(name)
    taken = select(Job.reference).where(Job.reference.startswith(wanted, autoescape=True))
    return free_name(wanted, set(session.scalars(taken)))
