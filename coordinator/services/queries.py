"""The questions of Control, answered from the database alone: a coordinator and a command line that
reads the database file give the same answers."""

from collections.abc import Container

from sqlalchemy.orm import Session

from coordinator.services import messages
from headwater.errors import NotFoundError
from headwater.v1 import control_pb2
from storage import history, plans
from storage.records import JobRecord, MetricScope, ModelRecord, RoundPurpose


def list_jobs(session: Session) -> control_pb2.ListJobsResponse:
    """The jobs, newest first."""
    return control_pb2.ListJobsResponse(
        jobs=[_job(session, record) for record in history.jobs(session)]
    )


def show_job(session: Session, reference: str) -> control_pb2.Job:
    """One job; raises NotFoundError."""
    return _job(session, history.job(session, reference))


def list_rounds(session: Session, reference: str, limit: int = 0) -> control_pb2.ListRoundsResponse:
    """The latest `limit` rounds of a job (0: all that one answer holds), by number."""
    records = history.rounds(
        session, reference, newest_first=True, limit=limit or history.MAXIMUM_ROWS
    )
    return control_pb2.ListRoundsResponse(
        rounds=[messages.round_message(one) for one in reversed(records)]
    )


def show_round(session: Session, reference: str, number: int) -> control_pb2.ShowRoundResponse:
    """A round with its ledger; raises NotFoundError."""
    try:
        record = history.round(session, reference, number)
    except NotFoundError:
        evaluations = history.rounds(session, reference, purpose=RoundPurpose.EVALUATE)
        if number not in {one.number for one in evaluations}:
            newest = history.rounds(session, reference, newest_first=True, limit=1)
            have = f"it has 1 to {newest[0].number}" if newest else "it had none yet"
            raise NotFoundError(f"job {reference} has no round {number}: {have}") from None
        record = history.round(session, reference, number, purpose=RoundPurpose.EVALUATE)
    return control_pb2.ShowRoundResponse(
        round=messages.round_message(record),
        assignments=[messages.ledger_message(one, reference) for one in record.assignments],
        late=[messages.ledger_message(one, reference) for one in record.late],
    )


def list_clients(
    session: Session, attending: Container[str] = ()
) -> control_pb2.ListClientsResponse:
    """The clients by name; `attending` holds the identities that attend now."""
    return control_pb2.ListClientsResponse(
        clients=[
            messages.client_message(one, attending=one.client_id in attending)
            for one in history.clients(session)
        ]
    )


def show_client(
    session: Session, name: str, attending: Container[str] = ()
) -> control_pb2.ShowClientResponse:
    """A client with its latest assignments; raises NotFoundError."""
    record = history.client(session, name)
    return control_pb2.ShowClientResponse(
        client=messages.client_message(record, attending=record.client_id in attending),
        assignments=[
            messages.ledger_message(one.assignment, one.job_reference)
            for one in history.participation(session, name)
        ],
    )


def list_models(session: Session, reference: str, best: str = "") -> control_pb2.ListModelsResponse:
    """A job's versions by number; with `best`, those with that metric, best first.

    Held-out metrics of the coordinator rank where there are any, else those of the clients.
    """
    records = (
        _ranked(session, reference, best)
        if best
        else list(reversed(history.models(session, reference)))
    )
    return control_pb2.ListModelsResponse(models=[messages.model_message(one) for one in records])


def plan_member(session: Session, reference: str, member: str) -> str:
    """The digest of a member of the plan that a job runs; raises NotFoundError."""
    record = history.job(session, reference)
    members = plans.get(session, digest=record.plan_digest).members
    if member not in members:
        raise NotFoundError(
            f"the plan of job {reference} has no member {member!r}: it has {', '.join(members)}"
        )
    return members[member]


def _ranked(session: Session, reference: str, best: str) -> list[ModelRecord]:
    try:
        return history.models(session, reference, best=best)
    except NotFoundError:
        return history.models(session, reference, best=best, scope=MetricScope.CLIENTS)


def _job(session: Session, record: JobRecord) -> control_pb2.Job:
    newest = history.models(session, record.reference, limit=1)
    metrics = {
        name.removeprefix("coordinator."): value
        for name, value in (newest[0].metrics if newest else {}).items()
        if name.startswith("coordinator.")
    }
    return messages.job_message(record, metrics)
