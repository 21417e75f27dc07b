"""Late updates: which round folded one whose own round had ended.

Revision: 0002, after 0001
"""

import sqlalchemy as sa
from alembic import op

from storage import columns

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the column and its index."""
    with op.batch_alter_table("assignments") as table:
        table.add_column(sa.Column("folded_round_id", columns.Identity, nullable=True))
        table.create_foreign_key(
            op.f("fk_assignments_folded_round_id_rounds"), "rounds", ["folded_round_id"], ["id"]
        )
        table.create_index(op.f("ix_assignments_folded_round_id"), ["folded_round_id"])
