"""Parts that sinks have written, each recorded in the transaction of its batch."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "part",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("step", sa.Text, nullable=False),
        sa.Column("directory", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.ForeignKeyConstraint(["run_id", "step"], ["worker.step.run_id", "worker.step.name"], ondelete="CASCADE"),
        schema="worker",
    )
    op.create_index("part_run_id_idx", "part", ["run_id", "directory", "id"], schema="worker")


def downgrade() -> None:
    """Drop it."""
    op.drop_table("part", schema="worker")
