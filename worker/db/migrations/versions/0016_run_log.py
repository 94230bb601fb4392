"""The last lines of the log of each run."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "run_log",
        sa.Column("run_id", sa.Text, sa.ForeignKey("worker.run.id", ondelete="CASCADE"), primary_key=True),
        sa.Column("lines", sa.ARRAY(sa.Text), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        schema="worker",
    )


def downgrade() -> None:
    """Drop it."""
    op.drop_table("run_log", schema="worker")
