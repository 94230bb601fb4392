"""Ranges of a step that several hands walk, and the runs that help another run."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table, and the columns of helper runs."""
    op.add_column("run", sa.Column("parent", sa.Text), schema="worker")
    op.add_column("run", sa.Column("parent_fence", sa.BigInteger), schema="worker")
    op.create_index(
        "run_parent_idx", "run", ["parent"], schema="worker", postgresql_where=sa.text("parent IS NOT NULL")
    )
    op.create_table(
        "step_range",
        sa.Column("run_id", sa.Text, primary_key=True),
        sa.Column("step", sa.Text, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("lower", JSONB(none_as_null=True)),
        sa.Column("upper", JSONB, nullable=False),
        sa.Column("cursor", JSONB(none_as_null=True)),
        sa.Column("fence", sa.BigInteger, nullable=False, server_default="1"),
        sa.Column("owner", sa.Text),
        sa.Column("owner_fence", sa.BigInteger),
        sa.Column("rows", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("batches", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("batches_before", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("done", sa.Boolean, nullable=False, server_default="false"),
        sa.Column("pace", JSONB(none_as_null=True)),
        sa.Column("error", sa.Text),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.ForeignKeyConstraint(["run_id", "step"], ["worker.step.run_id", "worker.step.name"], ondelete="CASCADE"),
        sa.CheckConstraint(
            "number >= 1 AND fence >= 1 AND rows >= 0 AND batches >= 0 AND batches_before >= 0",
            name="step_range_numbers_not_negative",
        ),
        schema="worker",
        postgresql_with={
            "fillfactor": 20,
            "autovacuum_vacuum_scale_factor": 0,
            "autovacuum_vacuum_threshold": 1000,
        },
    )
    op.create_index(
        "step_range_owner_idx", "step_range", ["owner"], schema="worker", postgresql_where=sa.text("owner IS NOT NULL")
    )


def downgrade() -> None:
    """Drop them."""
    op.drop_table("step_range", schema="worker")
    op.drop_index("run_parent_idx", table_name="run", schema="worker")
    op.drop_column("run", "parent_fence", schema="worker")
    op.drop_column("run", "parent", schema="worker")
