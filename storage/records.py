"""The frozen records that the repositories return, and the values that they take.

Fields are flat and simple, so that each maps by name to a message, a line of JSON or a column of a
table. Times are aware and in UTC; sizes are bytes; durations are seconds.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, TypedDict


class JobState(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class RoundState(StrEnum):
    """Where a round stands."""

    OPEN = "open"
    CLOSING = "closing"
    COMMITTED = "committed"
    ABANDONED = "abandoned"


class AssignmentState(StrEnum):
    """Where one client's part in one round stands."""

    OFFERED = "offered"
    TRAINING = "training"
    UPLOADING = "uploading"
    ACCEPTED = "accepted"
    LATE = "late"
    REJECTED = "rejected"
    FAILED = "failed"
    EXPIRED = "expired"
    DECLINED = "declined"
    RELEASED = "released"


class RoundPurpose(StrEnum):
    """Whether the clients of a round train, or only evaluate the base version."""

    TRAIN = "train"
    EVALUATE = "evaluate"


class MetricScope(StrEnum):
    """Who measured a metric, on what."""

    COORDINATOR = "coordinator"
    """The coordinator, on its held-out data, of the new version."""
    CLIENTS = "clients"
    """The clients, on their own data, of the version that they were sent; weighted by examples."""
    TRAIN = "train"
    """The clients, while they trained; weighted by examples."""


@dataclass(frozen=True, slots=True)
class ClientRecord:
    """One device."""

    client_id: str
    name: str
    tags: dict[str, str]
    profile: dict[str, Any]
    hostname: str
    instance_id: str
    insecure: bool
    first_seen_at: datetime
    last_seen_at: datetime
    ineligible_reason: str | None
    ineligible_since: datetime | None
    displaced_count: int


@dataclass(frozen=True, slots=True)
class JobRecord:
    """One training campaign and its progress. `latest_*` is its newest model version."""

    id: int
    reference: str
    name: str
    job_file: str
    spec: dict[str, Any]
    plan_digest: str
    dataset: str
    seed: int
    state: JobState
    state_reason: str
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    rounds_committed: int
    last_round_number: int
    """The highest number of a training round opened so far, 0 before the first."""
    latest_version: int
    latest_version_id: int
    latest_weights_digest: str
    latest_weights_size_bytes: int


@dataclass(frozen=True, slots=True)
class PlanRecord:
    """One compiled plan. `manifest` is its exact text; `members` maps names to blob digests."""

    digest: str
    name: str
    manifest: str
    size_bytes: int
    created_at: datetime
    members: dict[str, str]


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """One model version. `model` and `parent` read `JOB@NUMBER`. Metrics are keyed `scope.name`."""

    id: int
    model: str
    job_reference: str
    number: int
    weights_digest: str
    size_bytes: int
    round_number: int | None
    parent: str | None
    created_at: datetime
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class AssignmentRecord:
    """One row of the ledger: what a client was offered in a round, how it ended, and why."""

    id: int
    round_id: int
    client_id: str
    client_name: str
    client_index: int
    state: AssignmentState
    reason: str
    offered_at: datetime
    training_at: datetime | None
    uploading_at: datetime | None
    finished_at: datetime | None
    fetch_seconds: float | None
    train_seconds: float | None
    upload_seconds: float | None
    bytes_down: int
    bytes_up: int
    examples: int | None
    metrics_before: dict[str, float]
    metrics_after: dict[str, float]
    update_norm: float | None
    staleness: int
    update_digest: str | None
    update_size_bytes: int | None
    update_encoding: str | None
    update_collected: bool
    """The update's bytes were removed by retention; the digest still says what they were."""
    unencoded_size_bytes: int | None
    """What the update would take in float32."""
    encoding_error: float | None
    """The norm of what its encoding left out, over that of what was to be sent."""
    residual_norm: float | None
    """The norm of what earlier updates had left out, and this one was to bring."""
    residual_age_rounds: int | None
    """How many rounds ago that was."""
    seed: int
    weight: float | None
    """Its weight in the fold; None when it was not folded."""
    round_number: int
    folded_round_number: int | None
    """The round that took a late update; None for the others, which their own round folds."""
    evidence: str | None

    @property
    def is_held(self) -> bool:
        """Whether its update, or evaluation, was acknowledged. A late one that has no size was
        offered too late, and never came."""
        is_kept = self.state is AssignmentState.LATE and self.update_size_bytes is not None
        return self.state is AssignmentState.ACCEPTED or is_kept


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One round. `assignments` and `late` are filled by the calls that say so, else empty."""

    id: int
    job_id: int
    job_reference: str
    number: int
    purpose: RoundPurpose
    base_version: int
    base_version_id: int
    base_weights_digest: str
    base_optimizer_state_digest: str | None
    """The server optimizer's state at the base version; None too where retention removed it."""
    version: int | None
    """The number of the model version that it produced."""
    state: RoundState
    reason: str
    opened_at: datetime
    deadline_at: datetime | None
    closed_at: datetime | None
    ended_at: datetime | None
    """When it was committed or abandoned."""
    cohort: int
    quorum: int
    offered: int
    accepted: int
    examples: int
    bytes_down: int
    bytes_up: int
    seconds: float | None
    not_selected: dict[str, int]
    train_metrics: dict[str, float]
    client_metrics: dict[str, float]
    coordinator_metrics: dict[str, float]
    assignments: tuple[AssignmentRecord, ...] = ()
    late: tuple[AssignmentRecord, ...] = ()
    """Updates whose own round had ended, and which this one took to fold."""

    @property
    def held(self) -> tuple[AssignmentRecord, ...]:
        """The assignments whose acknowledged updates this round folds."""
        accepted = (one for one in self.assignments if one.state is AssignmentState.ACCEPTED)
        return (*accepted, *(one for one in self.late if one.state is AssignmentState.LATE))


@dataclass(frozen=True, slots=True)
class ReceiptRecord:
    """The durable acceptance of one update. `repeated`: it had been accepted before."""

    assignment_id: int
    state: AssignmentState
    digest: str
    size_bytes: int
    accepted_at: datetime
    repeated: bool


@dataclass(frozen=True, slots=True)
class ParticipationRecord:
    """One client's part in one round, seen from the client."""

    job_reference: str
    round_number: int
    purpose: RoundPurpose
    assignment: AssignmentRecord


@dataclass(frozen=True, slots=True)
class EventRecord:
    """One entry of the append-only list of what happened."""

    id: int
    at: datetime
    kind: str
    job_reference: str | None
    round_number: int | None
    client_name: str | None
    message: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Offer:
    """One client to offer a part in a new round. `seed` lies in 0 <= seed < 2**63.

    `encoding` is what its update is to be encoded in.
    """

    client_id: str
    seed: int
    encoding: str = "fp32"


@dataclass(frozen=True, slots=True)
class UpdateFacts:
    """What is known of an update when it is accepted. Its blob is durable already."""

    digest: str
    size_bytes: int
    encoding: str
    examples: int
    metrics_before: Mapping[str, float] = field(default_factory=dict)
    metrics_after: Mapping[str, float] = field(default_factory=dict)
    update_norm: float | None = None
    staleness: int = 0
    unencoded_size_bytes: int | None = None
    encoding_error: float | None = None
    residual_norm: float | None = None
    residual_age_rounds: int | None = None
    fetch_seconds: float | None = None
    train_seconds: float | None = None
    upload_seconds: float | None = None
    bytes_down: int = 0
    bytes_up: int = 0


class AssignmentFacts(TypedDict, total=False):
    """What `rounds.advance_assignment` can write beside the state; absent keys change nothing."""

    fetch_seconds: float
    train_seconds: float
    upload_seconds: float
    bytes_down: int
    bytes_up: int
    examples: int
    metrics_before: Mapping[str, float]
    metrics_after: Mapping[str, float]
    update_norm: float
    staleness: int
    update_digest: str
    update_size_bytes: int
    update_encoding: str
    evidence: str


@dataclass(frozen=True, slots=True)
class Fate:
    """How an assignment ends when its round does.

    `bytes_down`: what was sent for it so far, for the round's total.
    """

    state: AssignmentState
    reason: str
    evidence: str | None = None
    bytes_down: int = 0


@dataclass(frozen=True, slots=True)
class NewVersion:
    """The weights that a committed round produced, and the state of the server optimizer after it.

    Their blobs are durable already. The state's digest is None where the job has no such optimizer.
    """

    weights_digest: str
    size_bytes: int
    optimizer_state_digest: str | None = None
    optimizer_state_size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class MetricValue:
    """One number measured in a round, over `examples` examples."""

    scope: MetricScope
    name: str
    value: float
    examples: int = 0


@dataclass(frozen=True, slots=True)
class CollectionReport:
    """What one garbage collection removed."""

    updates_released: int
    """Ledger rows whose update is no longer kept by retention."""
    blobs_removed: int
    bytes_removed: int
    strays_removed: int
    """Files without a row, and temporary files, older than the grace."""
