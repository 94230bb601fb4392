"""Rows that a walk with skip_locked found locked, to be processed before its end."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "skipped",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("step", sa.Text, nullable=False),
        sa.Column("key", JSONB, nullable=False),
        sa.ForeignKeyConstraint(["run_id", "step"], ["worker.step.run_id", "worker.step.name"], ondelete="CASCADE"),
        schema="worker",
    )
    op.create_index("skipped_run_id_idx", "skipped", ["run_id", "step", "id"], schema="worker")


def downgrade() -> None:
    """Drop it."""
    op.drop_table("skipped", schema="worker")
