"""The database's records as the messages of Control: one function a record."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from headwater.v1 import control_pb2
from storage.records import (
    AssignmentRecord,
    AssignmentState,
    ClientRecord,
    JobRecord,
    ModelRecord,
    RoundRecord,
)


def job_message(record: JobRecord, metrics: Mapping[str, float] | None = None) -> control_pb2.Job:
    """A job; `metrics` are the latest held-out ones."""
    return control_pb2.Job(
        reference=record.reference,
        name=record.name,
        state=record.state,
        state_reason=record.state_reason,
        dataset=record.dataset,
        plan_digest=record.plan_digest,
        rounds_done=record.rounds_committed,
        rounds_planned=int(record.spec["rounds"]["count"]),
        latest_version=record.latest_version,
        metrics=metrics,
        created_at=_timestamp(record.created_at),
        started_at=_timestamp(record.started_at),
        ended_at=_timestamp(record.ended_at),
    )


def round_message(record: RoundRecord) -> control_pb2.Round:
    """A round without its ledger."""
    return control_pb2.Round(
        job=record.job_reference,
        number=record.number,
        purpose=record.purpose,
        state=record.state,
        reason=record.reason,
        base_version=record.base_version,
        version=-1 if record.version is None else record.version,
        offered=record.offered,
        accepted=record.accepted,
        examples=record.examples,
        bytes_down=record.bytes_down,
        bytes_up=record.bytes_up,
        seconds=record.seconds or 0.0,
        metrics_train=record.train_metrics,
        metrics_clients=record.client_metrics,
        metrics_coordinator=record.coordinator_metrics,
        not_selected=record.not_selected,
        opened_at=_timestamp(record.opened_at),
        ended_at=_timestamp(record.ended_at),
    )


def ledger_message(one: AssignmentRecord, job: str) -> control_pb2.LedgerRow:
    """A row of the ledger."""
    finished = one.state not in (
        AssignmentState.OFFERED,
        AssignmentState.TRAINING,
        AssignmentState.UPLOADING,
    )
    return control_pb2.LedgerRow(
        assignment_id=one.id,
        job=job,
        round_number=one.round_number,
        folded_round_number=one.folded_round_number or 0,
        client=one.client_name,
        client_id=one.client_id,
        state=one.state,
        reason=one.reason,
        fold_weight=one.weight or 0.0,
        examples=one.examples or 0,
        metrics_before=one.metrics_before,
        metrics_after=one.metrics_after,
        norm=one.update_norm or 0.0,
        staleness=one.staleness,
        bytes_down=one.bytes_down,
        bytes_up=one.bytes_up,
        fetch_seconds=one.fetch_seconds or 0.0,
        train_seconds=one.train_seconds or 0.0,
        upload_seconds=one.upload_seconds or 0.0,
        update_digest=one.update_digest or "",
        encoding=one.update_encoding or "",
        update_size_bytes=one.update_size_bytes or 0,
        unencoded_size_bytes=one.unencoded_size_bytes or 0,
        encoding_error=one.encoding_error or 0.0,
        residual_norm=one.residual_norm or 0.0,
        residual_age_rounds=one.residual_age_rounds or 0,
        offered_at=_timestamp(one.offered_at),
        ended_at=_timestamp(one.finished_at) if finished else None,
    )


def client_message(record: ClientRecord, *, attending: bool) -> control_pb2.Client:
    """A device."""
    return control_pb2.Client(
        client_id=record.client_id,
        name=record.name,
        hostname=record.hostname,
        tags=record.tags,
        profile={key: _text(value) for key, value in record.profile.items()},
        attending=attending,
        insecure=record.insecure,
        ineligible_reason=record.ineligible_reason or "",
        ineligible_since=_timestamp(record.ineligible_since),
        last_seen_at=_timestamp(record.last_seen_at),
        displaced_count=record.displaced_count,
    )


def model_message(record: ModelRecord) -> control_pb2.ModelVersion:
    """A model version."""
    return control_pb2.ModelVersion(
        job=record.job_reference,
        version=record.number,
        round_number=record.round_number or 0,
        weights_digest=record.weights_digest,
        size_bytes=record.size_bytes,
        metrics_coordinator=_scoped(record.metrics, "coordinator"),
        metrics_clients=_scoped(record.metrics, "clients"),
        created_at=_timestamp(record.created_at),
        parent=record.parent or "",
    )


def _scoped(metrics: Mapping[str, float], scope: str) -> dict[str, float]:
    prefix = f"{scope}."
    return {
        name.removeprefix(prefix): value
        for name, value in metrics.items()
        if name.startswith(prefix)
    }


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _timestamp(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp
