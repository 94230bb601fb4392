"""The position of a walk and the success of a run are written by workers: another UPDATE leaves rows out, or does them
again, and nothing would tell.

Each statement of a worker that moves a position sets `updated_at` as well. One that does not is refused.
"""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

FUNCTION = r"""
CREATE FUNCTION worker.refuse_change() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    run_id text := pg_catalog.to_jsonb(OLD) ->> TG_ARGV[0];
BEGIN
    IF TG_OP = 'DELETE' THEN
        -- A range goes with its step: the foreign key deletes it then.
        IF NOT EXISTS (SELECT FROM worker.step WHERE step.run_id = OLD.run_id AND step.name = OLD.step) THEN
            RETURN OLD;
        END IF;
    END IF;
    RAISE EXCEPTION USING
        MESSAGE = TG_TABLE_NAME || ' of run ' || run_id || ': workers alone write how far a run has come',
        HINT = 'To begin again: worker retry ' || run_id || ' --from-start. To end the run: worker cancel ' || run_id,
        ERRCODE = 'restrict_violation';
END
$body$
"""
#: The columns that hold the position, by table.
POSITION = {
    "step": ("kind", "key", "cursor", "upper_bound", "rows", "batches", "done"),
    "step_range": ("lower", "upper", "partition", "condition", "cursor", "rows", "batches", "done"),
}
RUN = """
CREATE TRIGGER run_succeeded_by_worker BEFORE UPDATE ON worker.run
FOR EACH ROW WHEN (NEW.state = 'succeeded' AND OLD.state <> 'succeeded' AND NEW.updated_at = OLD.updated_at)
EXECUTE FUNCTION worker.refuse_change('id')
"""
RANGE = """
CREATE TRIGGER step_range_deleted_with_step BEFORE DELETE ON worker.step_range
FOR EACH ROW EXECUTE FUNCTION worker.refuse_change('run_id')
"""


def upgrade() -> None:
    """Add the triggers."""
    statements = [FUNCTION, RUN, RANGE]
    for table, columns in POSITION.items():
        before, after = (", ".join(f"{row}.{column}" for column in columns) for row in ("OLD", "NEW"))
        statements.append(
            f"CREATE TRIGGER {table}_moved_by_worker BEFORE UPDATE ON worker.{table} FOR EACH ROW "
            f"WHEN (NEW.updated_at = OLD.updated_at AND ROW({before}) IS DISTINCT FROM ROW({after})) "
            f"EXECUTE FUNCTION worker.refuse_change('run_id')"
        )
    for statement in statements:
        op.execute(sa.DDL(statement.strip()))  # type: ignore[no-untyped-call]


def downgrade() -> None:
    """Drop them."""
    for table, name in (
        ("step_range", "step_range_moved_by_worker"),
        ("step", "step_moved_by_worker"),
        ("step_range", "step_range_deleted_with_step"),
        ("run", "run_succeeded_by_worker"),
    ):
        op.execute(f"DROP TRIGGER {name} ON worker.{table}")
    op.execute("DROP FUNCTION worker.refuse_change()")
