"""What an encoding cost an update, and the server optimizer's state beside a model version.

Revision: 0003, after 0002
"""

import sqlalchemy as sa
from alembic import op

from storage import columns

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the columns; none has a value for what was before."""
    op.add_column("assignments", sa.Column("unencoded_size_bytes", columns.Identity, nullable=True))
    op.add_column("assignments", sa.Column("encoding_error", sa.Double(), nullable=True))
    op.add_column("assignments", sa.Column("residual_norm", sa.Double(), nullable=True))
    op.add_column("assignments", sa.Column("residual_age_rounds", columns.Identity, nullable=True))
    # Without a foreign key: SQLite adds one only by making the table anew, and others refer to it.
    op.add_column(
        "model_versions", sa.Column("optimizer_state_digest", sa.String(64), nullable=True)
    )
    op.create_index(
        op.f("ix_model_versions_optimizer_state_digest"),
        "model_versions",
        ["optimizer_state_digest"],
    )
