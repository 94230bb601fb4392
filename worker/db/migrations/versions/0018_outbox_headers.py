"""The SQL function `worker.enqueue` takes headers from the setting `longhaul.headers` of its transaction.

A setting, and not another argument: a trigger passes on what its transaction has, its statements stay as they are, and
the function keeps its signature, and with it the rights that were granted on it.
"""

from importlib import import_module

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

# See 0012 for its rules. Headers of Longhaul itself are not for callers: one of them restricts what a run does.
ENQUEUE = r"""
CREATE OR REPLACE FUNCTION worker.enqueue(
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
    headers CONSTANT jsonb := COALESCE(NULLIF(pg_catalog.current_setting('longhaul.headers', true), ''), '{}')::jsonb;
    payload jsonb;
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
        WHEN pg_catalog.jsonb_typeof(headers) <> 'object'
            THEN 'the setting longhaul.headers must be an object of texts'
        WHEN EXISTS (
            SELECT FROM pg_catalog.jsonb_each(headers) AS one WHERE pg_catalog.jsonb_typeof(one.value) <> 'string'
        )
            THEN 'the setting longhaul.headers must be an object of texts'
        WHEN EXISTS (SELECT FROM pg_catalog.jsonb_object_keys(headers) AS name WHERE name ~* '^longhaul-')
            THEN 'the setting longhaul.headers must have no name that begins with longhaul-'
    END;
    IF problem IS NULL THEN
        payload := pg_catalog.jsonb_build_object(
            't', NULL, 'f', job, 'a', '[]'::jsonb, 'k', given,
            'et', pg_catalog.floor(EXTRACT(epoch FROM now_at) * 1000)::bigint
        );
        IF headers <> '{}' THEN
            payload := payload || pg_catalog.jsonb_build_object('h', headers);
        END IF;
        IF pg_catalog.octet_length(payload::text) > 4194304 THEN
            problem := 'the arguments have ' || pg_catalog.octet_length(payload::text)
                || ' bytes, and the limit is 4194304; write them to a table, and pass their key';
        END IF;
    END IF;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION USING MESSAGE = 'worker.enqueue: ' || problem, ERRCODE = 'invalid_parameter_value';
    END IF;
    INSERT INTO worker.outbox (run_id, job, queue, payload, due_at, priority)
    VALUES (run_id, job, queue, payload::text, now_at + delay, COALESCE(priority, 0));
    RETURN run_id;
END
$body$
"""


def upgrade() -> None:
    """Replace the function. Its owner and its rights stay."""
    op.execute(sa.DDL(ENQUEUE.strip()))  # type: ignore[no-untyped-call]


def downgrade() -> None:
    """Bring the former one back."""
    former = import_module("worker.db.migrations.versions.0012_outbox").ENQUEUE
    op.execute(sa.DDL(former.strip().replace("CREATE FUNCTION", "CREATE OR REPLACE FUNCTION")))  # type: ignore[no-untyped-call]
