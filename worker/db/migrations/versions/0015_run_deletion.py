"""A run that has not ended cannot be deleted: its next attempt would do its rows again."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

REFUSE = r"""
CREATE FUNCTION worker.refuse_deletion() RETURNS trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    RAISE EXCEPTION USING
        MESSAGE = 'run ' || OLD.id || ' is ' || OLD.state || ': a run that has not ended cannot be deleted',
        HINT = 'Cancel the run first: worker cancel ' || OLD.id,
        ERRCODE = 'restrict_violation';
END
$body$
"""
TRIGGER = """
CREATE TRIGGER run_deleted_only_if_ended BEFORE DELETE ON worker.run
FOR EACH ROW WHEN (OLD.finished_at IS NULL) EXECUTE FUNCTION worker.refuse_deletion()
"""


def upgrade() -> None:
    """Add the trigger."""
    for statement in (REFUSE, TRIGGER):
        op.execute(sa.DDL(statement.strip()))  # type: ignore[no-untyped-call]


def downgrade() -> None:
    """Drop it."""
    op.execute("DROP TRIGGER run_deleted_only_if_ended ON worker.run")
    op.execute("DROP FUNCTION worker.refuse_deletion()")
