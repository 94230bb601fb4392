"""The ledger: runs, steps and the last firing of each cron line."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the three tables."""
    now = sa.text("now()")
    op.create_table(
        "run",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("arguments", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("owner", sa.Text),
        sa.Column("backend_pid", sa.Integer),
        sa.Column("backend_start", sa.DateTime(timezone=True)),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("batches_before", sa.BigInteger, nullable=False),
        sa.Column("takeovers", sa.Integer, nullable=False, server_default="0"),
        sa.Column("result", JSONB),
        sa.Column("error", sa.Text),
        sa.Column("traceback", sa.Text),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=now),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=now),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.CheckConstraint(
            "state IN ('waiting', 'running', 'paused', 'succeeded', 'dead', 'cancelled')",
            name="run_state_known",
        ),
        schema="worker",
    )
    op.create_index(
        "run_unfinished_idx",
        "run",
        ["updated_at"],
        schema="worker",
        postgresql_where=sa.text("finished_at IS NULL"),
    )
    op.create_index("run_created_at_idx", "run", ["created_at"], schema="worker")
    op.create_table(
        "step",
        sa.Column(
            "run_id",
            sa.Text,
            sa.ForeignKey("worker.run.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("position", sa.Integer, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("statement", sa.Text, nullable=False),
        sa.Column("key", JSONB, nullable=False),
        sa.Column("fence", sa.BigInteger, nullable=False),
        sa.Column("cursor", JSONB),
        sa.Column("upper_bound", JSONB),
        sa.Column("rows", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("batches", sa.BigInteger, nullable=False, server_default="0"),
        sa.Column("total", sa.BigInteger),
        sa.Column("done", sa.Boolean, nullable=False, server_default="false"),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False, server_default=now),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False, server_default=now),
        schema="worker",
        postgresql_with={
            "fillfactor": 20,
            "autovacuum_vacuum_scale_factor": 0,
            "autovacuum_vacuum_threshold": 1000,
        },
    )
    op.create_table(
        "cron_firing",
        sa.Column("job", sa.Text, primary_key=True),
        sa.Column("line", sa.Text, primary_key=True),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        schema="worker",
    )


def downgrade() -> None:
    """Drop them."""
    for table in ("cron_firing", "step", "run"):
        op.drop_table(table, schema="worker")
