"""The partition of each range of a walk over a partitioned table."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, at the end of the table."""
    op.add_column("step_range", sa.Column("partition", sa.Text), schema="worker")
    op.add_column("step_range", sa.Column("condition", sa.Text), schema="worker")


def downgrade() -> None:
    """Drop them."""
    op.drop_column("step_range", "condition", schema="worker")
    op.drop_column("step_range", "partition", schema="worker")
