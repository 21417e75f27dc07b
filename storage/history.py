"""What people ask of the past: queries that return records. Each runs inside `Database.read`."""

from collections.abc import Sequence

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from headwater.errors import NotFoundError, UsageError
from storage import jobs as job_repository
from storage.names import unknown
from storage.records import (
    ClientRecord,
    EventRecord,
    JobRecord,
    JobState,
    MetricScope,
    ModelRecord,
    ParticipationRecord,
    RoundPurpose,
    RoundRecord,
)
from storage.schema import Assignment, Client, Event, Job, Metric, ModelVersion, Round
from storage.views import (
    assignment_record,
    client_record,
    job_record,
    model_records,
    round_records,
    select_assignments,
    select_jobs,
    select_models,
    select_rounds,
)

MAXIMUM_ROWS = 1_000
"""The most that one call returns; `after` goes on from the last one's id."""

_LESS_IS_BETTER = ("loss", "error", "perplexity")


def jobs(
    session: Session,
    *,
    states: Sequence[JobState] = (),
    limit: int = MAXIMUM_ROWS,
    after: int | None = None,
) -> list[JobRecord]:
    """Jobs, newest first; those of `states` if any are given. `after`: ids below this one."""
    query = select_jobs().order_by(Job.id.desc()).limit(_bounded(limit))
    if states:
        query = query.where(Job.state.in_(states))
    if after is not None:
        query = query.where(Job.id < after)
    return [job_record(row) for row in session.execute(query)]


def job(session: Session, reference: str) -> JobRecord:
    """One job.

    Raises:
        NotFoundError: there is none of this reference; the message names those like it.
    """
    return job_repository.by_reference(session, reference=reference)


def rounds(
    session: Session,
    reference: str,
    *,
    purpose: RoundPurpose | None = None,
    limit: int = MAXIMUM_ROWS,
    after: int | None = None,
    newest_first: bool = False,
) -> list[RoundRecord]:
    """A job's rounds without their ledgers, in order of opening. `after`: beyond the round's id.

    Raises:
        NotFoundError: there is no such job.
    """
    owner = job_repository.find(session, reference)
    query = select_rounds().where(Round.job_id == owner.id).limit(_bounded(limit))
    query = query.order_by(Round.id.desc() if newest_first else Round.id)
    if purpose is not None:
        query = query.where(Round.purpose == purpose)
    if after is not None:
        query = query.where(Round.id < after if newest_first else Round.id > after)
    return round_records(session, session.execute(query).all())


def round(  # noqa: A001
    session: Session,
    reference: str,
    number: int,
    *,
    purpose: RoundPurpose = RoundPurpose.TRAIN,
) -> RoundRecord:
    """One round with its ledger, in order of the clients' indices.

    Raises:
        NotFoundError: there is no such job, or it has no such round.
    """
    owner = job_repository.find(session, reference)
    mine = (Round.job_id == owner.id, Round.purpose == purpose)
    rows = session.execute(select_rounds().where(*mine, Round.number == number)).all()
    if not rows:
        numbers = session.scalars(select(Round.number).where(*mine).order_by(Round.number.desc()))
        raise unknown(f"{purpose} round of job {reference}", str(number), map(str, numbers))
    return round_records(session, rows, ledger=True)[0]


def clients(
    session: Session, *, limit: int = MAXIMUM_ROWS, after: str | None = None
) -> list[ClientRecord]:
    """Clients in order of name. `after`: names beyond this one."""
    query = select(Client).order_by(Client.name).limit(_bounded(limit))
    if after is not None:
        query = query.where(Client.name > after)
    return [client_record(row) for row in session.scalars(query)]


def client(session: Session, name: str) -> ClientRecord:
    """One client, by its name or its id.

    Raises:
        NotFoundError: there is none; the message names those like it.
    """
    query = select(Client).where(or_(Client.name == name, Client.client_id == name))
    # A name wins over another client's id that is spelled the same.
    found = sorted(session.scalars(query), key=lambda row: row.name != name)
    if not found:
        raise unknown("client", name, session.scalars(select(Client.name)))
    return client_record(found[0])


def participation(
    session: Session, name: str, *, limit: int = 100, after: int | None = None
) -> list[ParticipationRecord]:
    """A client's parts in rounds, newest first. `after`: assignments of ids below this one.

    Raises:
        NotFoundError: there is no such client.
    """
    owner = client(session, name)
    query = (
        select_assignments()
        .add_columns(Job.reference, Round.purpose)
        .join(Job, Job.id == Round.job_id)
        .where(Assignment.client_id == owner.client_id)
        .order_by(Assignment.id.desc())
        .limit(_bounded(limit))
    )
    if after is not None:
        query = query.where(Assignment.id < after)
    return [
        ParticipationRecord(
            reference, number, RoundPurpose(purpose), assignment_record(row, owned, number, folded)
        )
        for row, owned, number, folded, reference, purpose in session.execute(query)
    ]


def models(
    session: Session,
    reference: str | None = None,
    *,
    best: str | None = None,
    scope: MetricScope = MetricScope.COORDINATOR,
    limit: int = MAXIMUM_ROWS,
) -> list[ModelRecord]:
    """Model versions, newest first; with `best`, those that have this metric, best first.

    Less is better for metrics that end in `loss`, `error` or `perplexity`, more for others.

    Raises:
        NotFoundError: there is no such job, or no version has this metric.
    """
    query = select_models().limit(_bounded(limit))
    if reference is not None:
        query = query.where(ModelVersion.job_id == job_repository.find(session, reference).id)
    if best is None:
        return model_records(session, session.execute(query.order_by(ModelVersion.id.desc())).all())
    # A version may be measured more than once, such as by an evaluation round: the last counts.
    measured = (Metric.scope == scope, Metric.name == best, Metric.value.is_not(None))
    last = select(func.max(Metric.id)).where(*measured).group_by(Metric.version_id)
    query = query.join(Metric, Metric.version_id == ModelVersion.id).where(Metric.id.in_(last))
    order = Metric.value if best.endswith(_LESS_IS_BETTER) else Metric.value.desc()
    found = model_records(session, session.execute(query.order_by(order, ModelVersion.id)).all())
    if not found:
        names = session.scalars(select(Metric.name).where(Metric.scope == scope).distinct())
        raise unknown(f"version with the {scope} metric", best, names)
    return found


def model(session: Session, name: str) -> ModelRecord:
    """One model version: `JOB@NUMBER`, or `JOB` for its newest.

    Raises:
        UsageError: what follows the `@` is no number.
        NotFoundError: there is no such job or version.
    """
    reference, at, text = name.partition("@")
    owner = job_repository.find(session, reference)
    if at and not (text.isascii() and text.isdigit()):
        raise UsageError(
            f"{name!r} names no model version: write JOB@NUMBER, or JOB for its newest"
        )
    number = int(text) if at else owner.latest_version
    query = select_models().where(ModelVersion.job_id == owner.id, ModelVersion.number == number)
    rows = session.execute(query).all()
    if not rows:
        raise NotFoundError(
            f"there is no model version {name!r}; there is {reference}@0 to "
            f"{reference}@{owner.latest_version}"
        )
    return model_records(session, rows)[0]


def events(
    session: Session,
    reference: str | None = None,
    *,
    limit: int = 100,
    after: int | None = None,
    newest_first: bool = True,
) -> list[EventRecord]:
    """What happened, of one job if it is named. `after`: beyond the event's id.

    Raises:
        NotFoundError: there is no such job.
    """
    query = (
        select(Event, Job.reference, Round.number, Client.name)
        .outerjoin(Job, Job.id == Event.job_id)
        .outerjoin(Round, Round.id == Event.round_id)
        .outerjoin(Client, Client.client_id == Event.client_id)
        .order_by(Event.id.desc() if newest_first else Event.id)
        .limit(_bounded(limit))
    )
    if reference is not None:
        query = query.where(Event.job_id == job_repository.find(session, reference).id)
    if after is not None:
        query = query.where(Event.id < after if newest_first else Event.id > after)
    return [
        EventRecord(
            id=event.id,
            at=event.at,
            kind=event.kind,
            job_reference=job_reference,
            round_number=round_number,
            client_name=client_name,
            message=event.message,
            data=dict(event.data),
        )
        for event, job_reference, round_number, client_name in session.execute(query)
    ]


def _bounded(limit: int) -> int:
    return max(1, min(limit, MAXIMUM_ROWS))
