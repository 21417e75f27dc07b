"""Rows as records."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Nullable, Row, Select, SQLColumnExpression, select
from sqlalchemy.orm import Session, aliased

from storage.records import (
    AssignmentRecord,
    AssignmentState,
    ClientRecord,
    JobRecord,
    JobState,
    MetricScope,
    ModelRecord,
    RoundPurpose,
    RoundRecord,
    RoundState,
)
from storage.schema import Assignment, Client, Job, Metric, ModelVersion, Round

BaseVersion = aliased(ModelVersion)
ParentVersion = aliased(ModelVersion)
ParentJob = aliased(Job)
FoldedRound = aliased(Round)


def client_record(row: Client) -> ClientRecord:
    """A device."""
    return ClientRecord(
        client_id=row.client_id,
        name=row.name,
        tags=dict(row.tags),
        profile=dict(row.profile),
        hostname=row.hostname,
        instance_id=row.instance_id,
        insecure=row.insecure,
        first_seen_at=row.first_seen_at,
        last_seen_at=row.last_seen_at,
        ineligible_reason=row.ineligible_reason,
        ineligible_since=row.ineligible_since,
        displaced_count=row.displaced_count,
    )


def select_jobs() -> Select[Job, ModelVersion]:
    """Jobs with their newest model version, for `job_record`."""
    return select(Job, ModelVersion).join(
        ModelVersion,
        (ModelVersion.job_id == Job.id) & (ModelVersion.number == Job.latest_version),
    )


def job_record(row: Row[Job, ModelVersion]) -> JobRecord:
    """A job, from a row of `select_jobs`."""
    job, version = row
    return JobRecord(
        id=job.id,
        reference=job.reference,
        name=job.name,
        job_file=job.job_file,
        spec=dict(job.spec),
        plan_digest=job.plan_digest,
        dataset=job.dataset,
        seed=job.seed,
        state=JobState(job.state),
        state_reason=job.state_reason,
        created_at=job.created_at,
        started_at=job.started_at,
        ended_at=job.ended_at,
        rounds_committed=job.rounds_committed,
        last_round_number=job.last_round_number,
        latest_version=version.number,
        latest_version_id=version.id,
        latest_weights_digest=version.weights_digest,
        latest_weights_size_bytes=version.size_bytes,
    )


def select_assignments() -> Select[Assignment, str, int, int | None]:
    """Ledger rows with what `assignment_record` needs of their client and rounds."""
    return (
        select(Assignment, Client.name, Round.number, Nullable(FoldedRound.number))
        .join(Client, Client.client_id == Assignment.client_id)
        .join(Round, Round.id == Assignment.round_id)
        .outerjoin(FoldedRound, FoldedRound.id == Assignment.folded_round_id)
    )


def assignment_record(
    row: Assignment, client_name: str, round_number: int, folded_round_number: int | None
) -> AssignmentRecord:
    """A row of the ledger, from the first columns of `select_assignments`."""
    return AssignmentRecord(
        id=row.id,
        round_id=row.round_id,
        client_id=row.client_id,
        client_name=client_name,
        client_index=row.client_index,
        state=AssignmentState(row.state),
        reason=row.reason,
        offered_at=row.offered_at,
        training_at=row.training_at,
        uploading_at=row.uploading_at,
        finished_at=row.finished_at,
        fetch_seconds=row.fetch_seconds,
        train_seconds=row.train_seconds,
        upload_seconds=row.upload_seconds,
        bytes_down=row.bytes_down,
        bytes_up=row.bytes_up,
        examples=row.examples,
        metrics_before=dict(row.metrics_before),
        metrics_after=dict(row.metrics_after),
        update_norm=row.update_norm,
        staleness=row.staleness,
        update_digest=row.update_digest,
        update_size_bytes=row.update_size_bytes,
        update_encoding=row.update_encoding,
        update_collected=row.update_collected,
        unencoded_size_bytes=row.unencoded_size_bytes,
        encoding_error=row.encoding_error,
        residual_norm=row.residual_norm,
        residual_age_rounds=row.residual_age_rounds,
        seed=row.seed,
        weight=row.weight,
        round_number=round_number,
        folded_round_number=folded_round_number,
        evidence=row.evidence,
    )


RoundRow = Row[Round, str, ModelVersion, int | None]


def select_rounds() -> Select[Round, str, ModelVersion, int | None]:
    """Rounds with what `round_records` needs of their job and versions."""
    return (
        select(Round, Job.reference, BaseVersion, Nullable(ModelVersion.number))
        .join(Job, Job.id == Round.job_id)
        .join(BaseVersion, BaseVersion.id == Round.base_version_id)
        .outerjoin(ModelVersion, ModelVersion.round_id == Round.id)
    )


def round_records(
    session: Session, rows: Sequence[RoundRow], *, ledger: bool = False
) -> list[RoundRecord]:
    """Rounds from rows of `select_rounds`, with metrics, and with assignments if `ledger`."""
    ids = [row[0].id for row in rows]
    metrics = _metrics_by_round(session, ids)
    assignments = _assignments_by_round(session, Assignment.round_id, ids) if ledger else {}
    late = _assignments_by_round(session, Assignment.folded_round_id, ids) if ledger else {}
    return [
        _round_record(
            row,
            metrics.get(row[0].id, {}),
            tuple(assignments.get(row[0].id, ())),
            tuple(late.get(row[0].id, ())),
        )
        for row in rows
    ]


def _round_record(
    row: RoundRow,
    metrics: dict[MetricScope, dict[str, float]],
    assignments: tuple[AssignmentRecord, ...],
    late: tuple[AssignmentRecord, ...],
) -> RoundRecord:
    step, reference, base, version = row
    return RoundRecord(
        id=step.id,
        job_id=step.job_id,
        job_reference=reference,
        number=step.number,
        purpose=RoundPurpose(step.purpose),
        base_version=base.number,
        base_version_id=base.id,
        base_weights_digest=base.weights_digest,
        base_optimizer_state_digest=base.optimizer_state_digest,
        version=version,
        state=RoundState(step.state),
        reason=step.reason,
        opened_at=step.opened_at,
        deadline_at=step.deadline_at,
        closed_at=step.closed_at,
        ended_at=step.ended_at,
        cohort=step.cohort,
        quorum=step.quorum,
        offered=step.offered,
        accepted=step.accepted,
        examples=step.examples,
        bytes_down=step.bytes_down,
        bytes_up=step.bytes_up,
        seconds=step.seconds,
        not_selected=dict(step.not_selected),
        train_metrics=metrics.get(MetricScope.TRAIN, {}),
        client_metrics=metrics.get(MetricScope.CLIENTS, {}),
        coordinator_metrics=metrics.get(MetricScope.COORDINATOR, {}),
        assignments=assignments,
        late=late,
    )


def _metrics_by_round(
    session: Session, ids: Sequence[int]
) -> dict[int, dict[MetricScope, dict[str, float]]]:
    found: dict[int, dict[MetricScope, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    query = select(Metric).where(Metric.round_id.in_(ids)).order_by(Metric.id)
    for metric in session.scalars(query):
        found[metric.round_id][MetricScope(metric.scope)][metric.name] = metric.value
    return found


def _assignments_by_round(
    session: Session, round_id: SQLColumnExpression[Any], ids: Sequence[int]
) -> dict[int, list[AssignmentRecord]]:
    found: dict[int, list[AssignmentRecord]] = defaultdict(list)
    query = (
        select_assignments()
        .add_columns(round_id)
        .where(round_id.in_(ids))
        .order_by(round_id, Assignment.client_index, Assignment.id)
    )
    for row, name, number, folded, at in session.execute(query):
        found[at].append(assignment_record(row, name, number, folded))
    return found


ModelRow = Row[ModelVersion, str, int | None, str | None, int | None]


def select_models() -> Select[ModelVersion, str, int | None, str | None, int | None]:
    """Model versions with what `model_records` needs of their job, round and parent."""
    return (
        select(
            ModelVersion,
            Job.reference,
            Nullable(Round.number),
            Nullable(ParentJob.reference),
            Nullable(ParentVersion.number),
        )
        .join(Job, Job.id == ModelVersion.job_id)
        .outerjoin(Round, Round.id == ModelVersion.round_id)
        .outerjoin(ParentVersion, ParentVersion.id == ModelVersion.parent_version_id)
        .outerjoin(ParentJob, ParentJob.id == ParentVersion.job_id)
    )


def model_records(session: Session, rows: Sequence[ModelRow]) -> list[ModelRecord]:
    """Model versions from rows of `select_models`, with the metrics that describe them."""
    metrics: dict[int, dict[str, float]] = defaultdict(dict)
    ids = [row[0].id for row in rows]
    query = select(Metric).where(Metric.version_id.in_(ids)).order_by(Metric.id)
    for metric in session.scalars(query):
        metrics[metric.version_id][f"{metric.scope}.{metric.name}"] = metric.value
    return [_model_record(row, metrics.get(row[0].id, {})) for row in rows]


def _model_record(row: ModelRow, metrics: dict[str, float]) -> ModelRecord:
    version, reference, round_number, parent_reference, parent_number = row
    return ModelRecord(
        id=version.id,
        model=f"{reference}@{version.number}",
        job_reference=reference,
        number=version.number,
        weights_digest=version.weights_digest,
        size_bytes=version.size_bytes,
        round_number=round_number,
        parent=None if parent_reference is None else f"{parent_reference}@{parent_number}",
        created_at=version.created_at,
        metrics=metrics,
    )
