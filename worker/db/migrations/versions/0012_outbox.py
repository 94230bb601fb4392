"""The outbox: runs that are enqueued in the transactions of others, and the SQL function that does it."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB, UUID

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

# Identical notifications of one transaction are sent once. They arrive after its COMMIT, so that the relay sees the
# rows.
NOTIFY = """
CREATE FUNCTION worker.notify_outbox() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $body$
BEGIN
    PERFORM pg_catalog.pg_notify('worker_outbox', '');
    RETURN NULL;
END
$body$
"""

TRIGGER = """
CREATE TRIGGER outbox_notify AFTER INSERT ON worker.outbox
FOR EACH STATEMENT EXECUTE FUNCTION worker.notify_outbox()
"""

# The function runs as its owner, so that a role which may call it needs no right on the table. Its search path is
# fixed, each name in it is qualified, it runs no dynamic SQL, and it checks each argument.
ENQUEUE = r"""
CREATE FUNCTION worker.enqueue(
    job text,
    arguments jsonb DEFAULT '{}',
    id text DEFAULT NULL,
    delay interval DEFAULT NULL,
    queue text DEFAULT NULL,
    priority integer DEFAULT NULL
) RETURNS text LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $body$
DECLARE
    now_at CONSTANT timestamptz := pg_catalog.clock_timestamp();
    run_id CONSTANT text := COALESCE(id, pg_catalog.replace(pg_catalog.gen_random_uuid()::text, '-', ''));
    given CONSTANT jsonb := COALESCE(arguments, '{}');
    payload text;
    problem text;
BEGIN
    problem := CASE
        WHEN job IS NULL OR job = '' OR pg_catalog.length(job) > 500 OR job ~ '[[:cntrl:]]'
            THEN 'job must be a name of 1 to 500 printable characters'
        WHEN run_id = '' OR pg_catalog.length(run_id) > 500 OR run_id ~ '[[:cntrl:]]'
            THEN 'id must have 1 to 500 printable characters'
        WHEN pg_catalog.jsonb_typeof(given) <> 'object'
            THEN 'arguments must be an object with the arguments by name'
        WHEN queue = '' OR pg_catalog.length(queue) > 500 OR queue ~ '[[:cntrl:]]'
            THEN 'queue must be a name of 1 to 500 printable characters'
        WHEN queue ~ '^(worker:|arq:(job|in-progress|retry|result):|arq:abort$)' OR queue ~ ':health-check$'
            THEN 'queue must not be the name of another key of Redis'
        WHEN priority NOT BETWEEN 0 AND 9
            THEN 'priority must be a whole number from 0 to 9'
        WHEN delay < '0 seconds'::interval OR delay > '100 years'::interval
            THEN 'delay must be between 0 and 100 years'
    END;
    IF problem IS NULL THEN
        payload := pg_catalog.json_build_object(
            't', NULL, 'f', job, 'a', '[]'::json, 'k', given,
            'et', pg_catalog.floor(EXTRACT(epoch FROM now_at) * 1000)::bigint
        )::text;
        IF pg_catalog.octet_length(payload) > 4194304 THEN
            problem := 'the arguments have ' || pg_catalog.octet_length(payload)
                || ' bytes, and the limit is 4194304; write them to a table, and pass their key';
        END IF;
    END IF;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION USING MESSAGE = 'worker.enqueue: ' || problem, ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO worker.outbox (run_id, job, queue, payload, due_at, priority)
    VALUES (run_id, job, queue, payload, now_at + delay, COALESCE(priority, 0));
    RETURN run_id;
END
$body$
"""

SIGNATURE = "worker.enqueue(text, jsonb, text, interval, text, integer)"


def upgrade() -> None:
    """Make the table, its trigger and the function. No role may call the function until it is granted."""
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger, sa.Identity(always=True), primary_key=True),
        sa.Column("run_id", sa.Text, nullable=False),
        sa.Column("job", sa.Text, nullable=False),
        sa.Column("queue", sa.Text),
        sa.Column("payload", sa.Text, nullable=False),
        sa.Column("due_at", sa.DateTime(timezone=True)),
        sa.Column("priority", sa.Integer, nullable=False, server_default="0"),
        sa.Column("options", JSONB(none_as_null=True)),
        sa.Column("mark", UUID, nullable=False, server_default=sa.text("pg_catalog.gen_random_uuid()")),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, server_default=sa.func.clock_timestamp()),
        sa.Column("problem", sa.Text),
        sa.CheckConstraint("length(run_id) BETWEEN 1 AND 500", name="outbox_run_id_length"),
        sa.CheckConstraint("length(job) BETWEEN 1 AND 500", name="outbox_job_length"),
        sa.CheckConstraint("length(queue) BETWEEN 1 AND 500", name="outbox_queue_length"),
        sa.CheckConstraint("priority BETWEEN 0 AND 9", name="outbox_priority_known"),
        sa.CheckConstraint("octet_length(options::text) <= 100000", name="outbox_options_length"),
        schema="worker",
        postgresql_with={"autovacuum_vacuum_scale_factor": 0, "autovacuum_vacuum_threshold": 1000},
    )
    for statement in (NOTIFY, TRIGGER, ENQUEUE):
        op.execute(sa.DDL(statement.strip()))  # type: ignore[no-untyped-call]
    op.execute(f"REVOKE ALL ON FUNCTION {SIGNATURE} FROM PUBLIC")


def downgrade() -> None:
    """Drop them."""
    op.execute(f"DROP FUNCTION {SIGNATURE}")
    op.drop_table("outbox", schema="worker")
    op.execute("DROP FUNCTION worker.notify_outbox()")
