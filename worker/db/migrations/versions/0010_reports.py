"""The state `incomplete`, data migrations that are done, and the samples of which reports are made."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

STATES = "'waiting', 'running', 'paused', 'succeeded', 'incomplete', 'dead', 'cancelled'"
ENDED = "'succeeded', 'incomplete', 'dead', 'cancelled'"


def upgrade() -> None:
    """Allow the state, and make the tables."""
    _replace_checks(STATES, ENDED)
    op.create_table(
        "data_migration",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("result", JSONB(none_as_null=True)),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        schema="worker",
    )
    op.create_table(
        "sample",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("run_id", sa.Text, sa.ForeignKey("worker.run.id", ondelete="CASCADE"), nullable=False),
        sa.Column("step", sa.Text, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.now()),
        sa.Column("attempt", sa.Integer, nullable=False),
        sa.Column("rows", sa.BigInteger, nullable=False),
        sa.Column("batches", sa.BigInteger, nullable=False),
        sa.Column("seconds", JSONB, nullable=False),
        schema="worker",
    )
    op.create_index("sample_run_id_idx", "sample", ["run_id", "step", "id"], schema="worker")


def downgrade() -> None:
    """Drop them."""
    op.drop_table("sample", schema="worker")
    op.drop_table("data_migration", schema="worker")
    op.execute("UPDATE worker.run SET state = 'dead' WHERE state = 'incomplete'")
    without = ", 'incomplete'"
    _replace_checks(STATES.replace(without, ""), ENDED.replace(without, ""))


def _replace_checks(states: str, ended: str) -> None:
    conditions = {
        "run_state_known": f"state IN ({states})",
        "run_finished_if_ended": f"(finished_at IS NOT NULL) = (state IN ({ended}))",
    }
    for name, condition in conditions.items():
        op.execute(sa.text(f"ALTER TABLE worker.run DROP CONSTRAINT IF EXISTS {name}"))
        op.execute(sa.text(f"ALTER TABLE worker.run ADD CONSTRAINT {name} CHECK ({condition}) NOT VALID"))
        op.execute(
            sa.text(
                f"DO $$ BEGIN ALTER TABLE worker.run VALIDATE CONSTRAINT {name}; "
                f"EXCEPTION WHEN check_violation THEN RAISE WARNING 'worker.run has rows that break {name}'; END $$"
            )
        )
