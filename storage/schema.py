"""The tables. Foreign keys are on in both databases; times are UTC; sizes are bytes.

A change here needs a migration in `storage/migrations/versions` and its number in `REVISION`; a
test compares the two.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, Index, MetaData, String, Text, UniqueConstraint
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from storage.columns import AnyFloat, Identity, Json, Measurements, UtcDateTime

REVISION = "0003"
"""The schema version that this program reads and writes: the newest migration's."""

WRITE_KEY = 0x48454144_00000001
"""The advisory lock of PostgreSQL that every write takes; it begins with "HEAD" in ASCII."""


class Base(DeclarativeBase):
    """All tables. Constraints have names by rule, so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012
        datetime: UtcDateTime,
        int: Identity,
        dict[str, Any]: Json,
        Mapping[str, float]: Measurements,
        str: Text,
    }


class Client(Base):
    """A device. Its id comes from the device, its name is unique here."""

    __tablename__ = "clients"
    client_id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    requested_name: Mapped[str]
    tags: Mapped[dict[str, Any]]
    profile: Mapped[dict[str, Any]]
    hostname: Mapped[str]
    instance_id: Mapped[str]
    insecure: Mapped[bool]
    first_seen_at: Mapped[datetime]
    last_seen_at: Mapped[datetime]
    ineligible_reason: Mapped[str | None]
    ineligible_since: Mapped[datetime | None]
    displaced_count: Mapped[int] = mapped_column(default=0)


class Credential(Base):
    """A certificate or token that proves a client's identity."""

    __tablename__ = "credentials"
    id: Mapped[int] = mapped_column(primary_key=True)
    client_id: Mapped[str] = mapped_column(ForeignKey("clients.client_id"), index=True)
    kind: Mapped[str]
    fingerprint: Mapped[str] = mapped_column(unique=True)
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class EnrollmentToken(Base):
    """A secret that lets one device enroll; only its digest is kept."""

    __tablename__ = "enrollment_tokens"
    id: Mapped[int] = mapped_column(primary_key=True)
    token_digest: Mapped[str] = mapped_column(unique=True)
    tags: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    used_at: Mapped[datetime | None]
    client_id: Mapped[str | None] = mapped_column(ForeignKey("clients.client_id"))


class Blob(Base):
    """Immutable bytes in the blob store, by SHA-256."""

    __tablename__ = "blobs"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    size_bytes: Mapped[int]
    kind: Mapped[str]
    created_at: Mapped[datetime]


class BlobPin(Base):
    """Keeps a blob from collection while its writer has no row that refers to it yet."""

    __tablename__ = "blob_pins"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    holder: Mapped[str] = mapped_column(primary_key=True, index=True)
    since: Mapped[datetime]


class Plan(Base):
    """A compiled plan. `manifest` is its exact text, whose SHA-256 is the digest."""

    __tablename__ = "plans"
    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str]
    manifest: Mapped[str]
    size_bytes: Mapped[int]
    created_at: Mapped[datetime]


class PlanMember(Base):
    """One file of a plan."""

    __tablename__ = "plan_members"
    plan_digest: Mapped[str] = mapped_column(ForeignKey("plans.digest"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    blob_digest: Mapped[str] = mapped_column(ForeignKey("blobs.digest"), index=True)


class Job(Base):
    """A training campaign."""

    __tablename__ = "jobs"
    id: Mapped[int] = mapped_column(primary_key=True)
    reference: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    job_file: Mapped[str]
    spec: Mapped[dict[str, Any]]
    plan_digest: Mapped[str] = mapped_column(ForeignKey("plans.digest"), index=True)
    dataset: Mapped[str]
    seed: Mapped[int]
    state: Mapped[str] = mapped_column(String(16), index=True)
    state_reason: Mapped[str]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    rounds_committed: Mapped[int] = mapped_column(default=0)
    last_round_number: Mapped[int] = mapped_column(default=0)
    latest_version: Mapped[int] = mapped_column(default=0)


class Participant(Base):
    """A client's index in a job: given once, in order of name among newcomers, and never reused."""

    __tablename__ = "participants"
    __table_args__ = (UniqueConstraint("job_id", "client_index"),)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    client_id: Mapped[str] = mapped_column(
        ForeignKey("clients.client_id"), primary_key=True, index=True
    )
    client_index: Mapped[int]
    since: Mapped[datetime]


class ModelVersion(Base):
    """The weights that a committed round produced; number 0 is what the job began with."""

    __tablename__ = "model_versions"
    __table_args__ = (UniqueConstraint("job_id", "number"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    number: Mapped[int]
    weights_digest: Mapped[str] = mapped_column(ForeignKey("blobs.digest"), index=True)
    size_bytes: Mapped[int]
    # No foreign key: SQLite could not add one to a table that others refer to.
    optimizer_state_digest: Mapped[str | None] = mapped_column(String(64), index=True)
    # No foreign key: a round names its base version, and a circle cannot be made in SQLite.
    round_id: Mapped[int | None] = mapped_column(unique=True)
    parent_version_id: Mapped[int | None] = mapped_column(ForeignKey("model_versions.id"))
    created_at: Mapped[datetime]


class Round(Base):
    """One step of the global model, or one evaluation of it by the clients."""

    __tablename__ = "rounds"
    __table_args__ = (UniqueConstraint("job_id", "purpose", "number"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    number: Mapped[int]
    purpose: Mapped[str] = mapped_column(String(16))
    base_version_id: Mapped[int] = mapped_column(ForeignKey("model_versions.id"), index=True)
    state: Mapped[str] = mapped_column(String(16), index=True)
    reason: Mapped[str]
    opened_at: Mapped[datetime]
    deadline_at: Mapped[datetime | None]
    closed_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]
    cohort: Mapped[int]
    quorum: Mapped[int]
    offered: Mapped[int]
    accepted: Mapped[int] = mapped_column(default=0)
    examples: Mapped[int] = mapped_column(default=0)
    bytes_down: Mapped[int] = mapped_column(default=0)
    bytes_up: Mapped[int] = mapped_column(default=0)
    seconds: Mapped[float | None]
    not_selected: Mapped[dict[str, Any]]


class Assignment(Base):
    """The ledger: one client's part in one round.

    An update's digest refers to its blob from the moment it is written here, before the upload,
    until retention sets `update_collected`.
    """

    __tablename__ = "assignments"
    __table_args__ = (
        UniqueConstraint("round_id", "client_id"),
        Index("ix_assignments_client_id_id", "client_id", "id"),
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    round_id: Mapped[int] = mapped_column(ForeignKey("rounds.id"))
    client_id: Mapped[str] = mapped_column(ForeignKey("clients.client_id"))
    client_index: Mapped[int]
    state: Mapped[str] = mapped_column(String(16))
    reason: Mapped[str]
    offered_at: Mapped[datetime]
    training_at: Mapped[datetime | None]
    uploading_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    fetch_seconds: Mapped[float | None]
    train_seconds: Mapped[float | None]
    upload_seconds: Mapped[float | None]
    bytes_down: Mapped[int] = mapped_column(default=0)
    bytes_up: Mapped[int] = mapped_column(default=0)
    examples: Mapped[int | None]
    metrics_before: Mapped[Mapping[str, float]] = mapped_column(default=dict)
    metrics_after: Mapped[Mapping[str, float]] = mapped_column(default=dict)
    update_norm: Mapped[float | None]
    staleness: Mapped[int] = mapped_column(default=0)
    update_digest: Mapped[str | None] = mapped_column(String(64), index=True)
    update_size_bytes: Mapped[int | None]
    update_encoding: Mapped[str | None]
    update_collected: Mapped[bool] = mapped_column(default=False)
    unencoded_size_bytes: Mapped[int | None]
    encoding_error: Mapped[float | None]
    residual_norm: Mapped[float | None]
    residual_age_rounds: Mapped[int | None]
    seed: Mapped[int]
    weight: Mapped[float | None]
    # The round whose fold took a late update; the others are folded by their own round.
    folded_round_id: Mapped[int | None] = mapped_column(ForeignKey("rounds.id"), index=True)
    evidence: Mapped[str | None]


class Metric(Base):
    """One number measured in a round. `version_id` is the version that it describes."""

    __tablename__ = "metrics"
    __table_args__ = (Index("ix_metrics_job_id_name_scope", "job_id", "name", "scope"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    job_id: Mapped[int] = mapped_column(ForeignKey("jobs.id"))
    round_id: Mapped[int] = mapped_column(ForeignKey("rounds.id"), index=True)
    version_id: Mapped[int] = mapped_column(ForeignKey("model_versions.id"), index=True)
    scope: Mapped[str] = mapped_column(String(16))
    name: Mapped[str]
    value: Mapped[float] = mapped_column(AnyFloat, nullable=True)
    examples: Mapped[int]


class Event(Base):
    """What happened, for people to read; rows are only ever added."""

    __tablename__ = "events"
    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(index=True)
    kind: Mapped[str]
    job_id: Mapped[int | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    round_id: Mapped[int | None] = mapped_column(ForeignKey("rounds.id"), index=True)
    client_id: Mapped[str | None] = mapped_column(ForeignKey("clients.client_id"), index=True)
    message: Mapped[str]
    data: Mapped[dict[str, Any]]


class Claim(Base):
    """Who holds a PostgreSQL database; the epoch grows with every holder. One row at most."""

    __tablename__ = "claims"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    epoch: Mapped[int]
    holder: Mapped[str]
    host: Mapped[str]
    pid: Mapped[int]
    since: Mapped[datetime]
