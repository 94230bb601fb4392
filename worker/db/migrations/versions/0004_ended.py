"""An index of finished runs by the time of their end, for the pruner."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the index."""
    op.create_index(
        "run_ended_idx",
        "run",
        ["finished_at", "id"],
        schema="worker",
        postgresql_where=sa.text("finished_at IS NOT NULL"),
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_index("run_ended_idx", table_name="run", schema="worker")
