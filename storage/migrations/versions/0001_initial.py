"""The first schema: clients, plans, jobs, rounds, the ledger, metrics, events and blobs."""

import sqlalchemy as sa
from alembic import op

from storage import columns

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "blob_pins",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("since", columns.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("digest", "holder", name=op.f("pk_blob_pins")),
    )
    op.create_index(op.f("ix_blob_pins_holder"), "blob_pins", ["holder"], unique=False)
    op.create_table(
        "blobs",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", columns.Identity, nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_blobs")),
    )
    op.create_table(
        "claims",
        sa.Column("id", columns.Identity, autoincrement=False, nullable=False),
        sa.Column("epoch", columns.Identity, nullable=False),
        sa.Column("holder", sa.Text(), nullable=False),
        sa.Column("host", sa.Text(), nullable=False),
        sa.Column("pid", columns.Identity, nullable=False),
        sa.Column("since", columns.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_claims")),
    )
    op.create_table(
        "clients",
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("requested_name", sa.Text(), nullable=False),
        sa.Column("tags", columns.Json, nullable=False),
        sa.Column("profile", columns.Json, nullable=False),
        sa.Column("hostname", sa.Text(), nullable=False),
        sa.Column("instance_id", sa.Text(), nullable=False),
        sa.Column("insecure", sa.Boolean(), nullable=False),
        sa.Column("first_seen_at", columns.UtcDateTime(), nullable=False),
        sa.Column("last_seen_at", columns.UtcDateTime(), nullable=False),
        sa.Column("ineligible_reason", sa.Text(), nullable=True),
        sa.Column("ineligible_since", columns.UtcDateTime(), nullable=True),
        sa.Column("displaced_count", columns.Identity, nullable=False),
        sa.PrimaryKeyConstraint("client_id", name=op.f("pk_clients")),
        sa.UniqueConstraint("name", name=op.f("uq_clients_name")),
    )
    op.create_table(
        "plans",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("manifest", sa.Text(), nullable=False),
        sa.Column("size_bytes", columns.Identity, nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name=op.f("pk_plans")),
    )
    op.create_table(
        "credentials",
        sa.Column("id", columns.Identity, nullable=False),
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("fingerprint", sa.Text(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.Column("expires_at", columns.UtcDateTime(), nullable=True),
        sa.Column("revoked_at", columns.UtcDateTime(), nullable=True),
        sa.ForeignKeyConstraint(
            ["client_id"], ["clients.client_id"], name=op.f("fk_credentials_client_id_clients")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_credentials")),
        sa.UniqueConstraint("fingerprint", name=op.f("uq_credentials_fingerprint")),
    )
    op.create_index(op.f("ix_credentials_client_id"), "credentials", ["client_id"], unique=False)
    op.create_table(
        "enrollment_tokens",
        sa.Column("id", columns.Identity, nullable=False),
        sa.Column("token_digest", sa.Text(), nullable=False),
        sa.Column("tags", columns.Json, nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.Column("expires_at", columns.UtcDateTime(), nullable=True),
        sa.Column("used_at", columns.UtcDateTime(), nullable=True),
        sa.Column("client_id", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["client_id"],
            ["clients.client_id"],
            name=op.f("fk_enrollment_tokens_client_id_clients"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_enrollment_tokens")),
        sa.UniqueConstraint("token_digest", name=op.f("uq_enrollment_tokens_token_digest")),
    )
    op.create_table(
        "jobs",
        sa.Column("id", columns.Identity, nullable=False),
        sa.Column("reference", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("job_file", sa.Text(), nullable=False),
        sa.Column("spec", columns.Json, nullable=False),
        sa.Column("plan_digest", sa.String(length=64), nullable=False),
        sa.Column("dataset", sa.Text(), nullable=False),
        sa.Column("seed", columns.Identity, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("state_reason", sa.Text(), nullable=False),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.Column("started_at", columns.UtcDateTime(), nullable=True),
        sa.Column("ended_at", columns.UtcDateTime(), nullable=True),
        sa.Column("rounds_committed", columns.Identity, nullable=False),
        sa.Column("last_round_number", columns.Identity, nullable=False),
        sa.Column("latest_version", columns.Identity, nullable=False),
        sa.ForeignKeyConstraint(
            ["plan_digest"], ["plans.digest"], name=op.f("fk_jobs_plan_digest_plans")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
        sa.UniqueConstraint("reference", name=op.f("uq_jobs_reference")),
    )
    op.create_index(op.f("ix_jobs_plan_digest"), "jobs", ["plan_digest"], unique=False)
    op.create_index(op.f("ix_jobs_state"), "jobs", ["state"], unique=False)
    op.create_table(
        "plan_members",
        sa.Column("plan_digest", sa.String(length=64), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("blob_digest", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["blob_digest"], ["blobs.digest"], name=op.f("fk_plan_members_blob_digest_blobs")
        ),
        sa.ForeignKeyConstraint(
            ["plan_digest"], ["plans.digest"], name=op.f("fk_plan_members_plan_digest_plans")
        ),
        sa.PrimaryKeyConstraint("plan_digest", "name", name=op.f("pk_plan_members")),
    )
    op.create_index(
        op.f("ix_plan_members_blob_digest"), "plan_members", ["blob_digest"], unique=False
    )
    op.create_table(
        "model_versions",
        sa.Column("id", columns.Identity, nullable=False),
        sa.Column("job_id", columns.Identity, nullable=False),
        sa.Column("number", columns.Identity, nullable=False),
        sa.Column("weights_digest", sa.String(length=64), nullable=False),
        sa.Column("size_bytes", columns.Identity, nullable=False),
        sa.Column("round_id", columns.Identity, nullable=True),
        sa.Column("parent_version_id", columns.Identity, nullable=True),
        sa.Column("created_at", columns.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["job_id"], ["jobs.id"], name=op.f("fk_model_versions_job_id_jobs")
        ),
        sa.ForeignKeyConstraint(
            ["parent_version_id"],
            ["model_versions.id"],
            name=op.f("fk_model_versions_parent_version_id_model_versions"),
        ),
        sa.ForeignKeyConstraint(
            ["weights_digest"],
            ["blobs.digest"],
            name=op.f("fk_model_versions_weights_digest_blobs"),
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model_versions")),
        sa.UniqueConstraint("job_id", "number", name=op.f("uq_model_versions_job_id_number")),
        sa.UniqueConstraint("round_id", name=op.f("uq_model_versions_round_id")),
    )
    op.create_index(
        op.f("ix_model_versions_weights_digest"), "model_versions", ["weights_digest"], unique=False
    )
    op.create_table(
        "participants",
        sa.Column("job_id", columns.Identity, nullable=False),
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("client_index", columns.Identity, nullable=False),
        sa.Column("since", columns.UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(
            ["client_id"], ["clients.client_id"], name=op.f("fk_participants_client_id_clients")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_participants_job_id_jobs")),
        sa.PrimaryKeyConstraint("job_id", "client_id", name=op.f("pk_participants")),
        sa.UniqueConstraint(
            "job_id", "client_index", name=op.f("uq_participants_job_id_client_index")
        ),
    )
    op.create_index(op.f("ix_participants_client_id"), "participants", ["client_id"], unique=False)
    op.create_table(
        "rounds",
        sa.Column("id", columns.Identity, nullable=False),
        sa.Column("job_id", columns.Identity, nullable=False),
        sa.Column("number", columns.Identity, nullable=False),
        sa.Column("purpose", sa.String(length=16), nullable=False),
        sa.Column("base_version_id", columns.Identity, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("opened_at", columns.UtcDateTime(), nullable=False),
        sa.Column("deadline_at", columns.UtcDateTime(), nullable=True),
        sa.Column("closed_at", columns.UtcDateTime(), nullable=True),
        sa.Column("ended_at", columns.UtcDateTime(), nullable=True),
        sa.Column("cohort", columns.Identity, nullable=False),
        sa.Column("quorum", columns.Identity, nullable=False),
        sa.Column("offered", columns.Identity, nullable=False),
        sa.Column("accepted", columns.Identity, nullable=False),
        sa.Column("examples", columns.Identity, nullable=False),
        sa.Column("bytes_down", columns.Identity, nullable=False),
        sa.Column("bytes_up", columns.Identity, nullable=False),
        sa.Column("seconds", sa.Double(), nullable=True),
        sa.Column("not_selected", columns.Json, nullable=False),
        sa.ForeignKeyConstraint(
            ["base_version_id"],
            ["model_versions.id"],
            name=op.f("fk_rounds_base_version_id_model_versions"),
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_rounds_job_id_jobs")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rounds")),
        sa.UniqueConstraint(
            "job_id", "purpose", "number", name=op.f("uq_rounds_job_id_purpose_number")
        ),
    )
    op.create_index(op.f("ix_rounds_base_version_id"), "rounds", ["base_version_id"], unique=False)
    op.create_index(op.f("ix_rounds_state"), "rounds", ["state"], unique=False)
    op.create_table(
        "assignments",
        sa.Column("id", columns.Identity, nullable=False),
        sa.Column("round_id", columns.Identity, nullable=False),
        sa.Column("client_id", sa.Text(), nullable=False),
        sa.Column("client_index", columns.Identity, nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("offered_at", columns.UtcDateTime(), nullable=False),
        sa.Column("training_at", columns.UtcDateTime(), nullable=True),
        sa.Column("uploading_at", columns.UtcDateTime(), nullable=True),
        sa.Column("finished_at", columns.UtcDateTime(), nullable=True),
        sa.Column("fetch_seconds", sa.Double(), nullable=True),
        sa.Column("train_seconds", sa.Double(), nullable=True),
        sa.Column("upload_seconds", sa.Double(), nullable=True),
        sa.Column("bytes_down", columns.Identity, nullable=False),
        sa.Column("bytes_up", columns.Identity, nullable=False),
        sa.Column("examples", columns.Identity, nullable=True),
        sa.Column("metrics_before", columns.Measurements(), nullable=False),
        sa.Column("metrics_after", columns.Measurements(), nullable=False),
        sa.Column("update_norm", sa.Double(), nullable=True),
        sa.Column("staleness", columns.Identity, nullable=False),
        sa.Column("update_digest", sa.String(length=64), nullable=True),
        sa.Column("update_size_bytes", columns.Identity, nullable=True),
        sa.Column("update_encoding", sa.Text(), nullable=True),
        sa.Column("update_collected", sa.Boolean(), nullable=False),
        sa.Column("seed", columns.Identity, nullable=False),
        sa.Column("weight", sa.Double(), nullable=True),
        sa.Column("evidence", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["client_id"], ["clients.client_id"], name=op.f("fk_assignments_client_id_clients")
        ),
        sa.ForeignKeyConstraint(
            ["round_id"], ["rounds.id"], name=op.f("fk_assignments_round_id_rounds")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_assignments")),
        sa.UniqueConstraint(
            "round_id", "client_id", name=op.f("uq_assignments_round_id_client_id")
        ),
    )
    op.create_index("ix_assignments_client_id_id", "assignments", ["client_id", "id"], unique=False)
    op.create_index(
        op.f("ix_assignments_update_digest"), "assignments", ["update_digest"], unique=False
    )
    op.create_table(
        "events",
        sa.Column("id", columns.Identity, nullable=False),
        sa.Column("at", columns.UtcDateTime(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("job_id", columns.Identity, nullable=True),
        sa.Column("round_id", columns.Identity, nullable=True),
        sa.Column("client_id", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("data", columns.Json, nullable=False),
        sa.ForeignKeyConstraint(
            ["client_id"], ["clients.client_id"], name=op.f("fk_events_client_id_clients")
        ),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_events_job_id_jobs")),
        sa.ForeignKeyConstraint(
            ["round_id"], ["rounds.id"], name=op.f("fk_events_round_id_rounds")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
    )
    op.create_index(op.f("ix_events_at"), "events", ["at"], unique=False)
    op.create_index(op.f("ix_events_client_id"), "events", ["client_id"], unique=False)
    op.create_index(op.f("ix_events_job_id"), "events", ["job_id"], unique=False)
    op.create_index(op.f("ix_events_round_id"), "events", ["round_id"], unique=False)
    op.create_table(
        "metrics",
        sa.Column("id", columns.Identity, nullable=False),
        sa.Column("job_id", columns.Identity, nullable=False),
        sa.Column("round_id", columns.Identity, nullable=False),
        sa.Column("version_id", columns.Identity, nullable=False),
        sa.Column("scope", sa.String(length=16), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", columns.AnyFloat(), nullable=True),
        sa.Column("examples", columns.Identity, nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_metrics_job_id_jobs")),
        sa.ForeignKeyConstraint(
            ["round_id"], ["rounds.id"], name=op.f("fk_metrics_round_id_rounds")
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["model_versions.id"], name=op.f("fk_metrics_version_id_model_versions")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_metrics")),
    )
    op.create_index(
        "ix_metrics_job_id_name_scope", "metrics", ["job_id", "name", "scope"], unique=False
    )
    op.create_index(op.f("ix_metrics_round_id"), "metrics", ["round_id"], unique=False)
    op.create_index(op.f("ix_metrics_version_id"), "metrics", ["version_id"], unique=False)
