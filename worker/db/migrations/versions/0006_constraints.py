"""The number of a run's steps, the version of the code that began a step, and constraints on written values."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# A walk by a key has one value for each part of it.
FITS_KEY = (
    "CASE WHEN kind NOT IN ('chunks', 'sweep') THEN true "
    "WHEN pg_catalog.jsonb_typeof({0}) <> 'array' OR pg_catalog.jsonb_typeof(key) <> 'array' THEN false "
    "ELSE pg_catalog.jsonb_array_length({0}) = pg_catalog.jsonb_array_length(key) END"
)
CONSTRAINTS = {
    "run": {
        "run_finished_if_ended": "(finished_at IS NOT NULL) = (state IN ('succeeded', 'dead', 'cancelled'))",
        "run_numbers_not_negative": "fence >= 1 AND attempt >= 0 AND batches_before >= 0 AND takeovers >= 0 "
        "AND steps >= 0",
    },
    "step": {
        "step_numbers_not_negative": "fence >= 1 AND position >= 1 AND rows >= 0 AND batches >= 0 AND total >= 0",
        "step_key_is_a_list": "pg_catalog.jsonb_typeof(key) = 'array'",
        "step_cursor_fits_key": f"cursor IS NULL OR {FITS_KEY.format('cursor')}",
        "step_upper_bound_fits_key": f"upper_bound IS NULL OR {FITS_KEY.format('upper_bound')}",
    },
}


def upgrade() -> None:
    """Add the column, and the constraints for new and changed rows."""
    op.add_column("run", sa.Column("steps", sa.Integer, nullable=False, server_default="0"), schema="worker")
    op.add_column("step", sa.Column("code_version", sa.Text), schema="worker")
    for table, constraints in CONSTRAINTS.items():
        for name, condition in constraints.items():
            # A row that breaks the rule today must not stop a deploy: it is checked when it changes.
            op.execute(sa.text(f"ALTER TABLE worker.{table} ADD CONSTRAINT {name} CHECK ({condition}) NOT VALID"))
            op.execute(
                sa.text(
                    f"DO $$ BEGIN ALTER TABLE worker.{table} VALIDATE CONSTRAINT {name}; "
                    f"EXCEPTION WHEN check_violation THEN RAISE WARNING 'worker.{table} has rows that break {name}'; "
                    "END $$"
                )
            )


def downgrade() -> None:
    """Drop them."""
    for table, constraints in CONSTRAINTS.items():
        for name in constraints:
            op.execute(sa.text(f"ALTER TABLE worker.{table} DROP CONSTRAINT {name}"))
    op.drop_column("step", "code_version", schema="worker")
    op.drop_column("run", "steps", schema="worker")
