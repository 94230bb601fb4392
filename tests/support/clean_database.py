"""An empty database for each test, without creating its tables again for each test.

The schema is built once in a process. Between tests, rows, sequences and statistics are reset. If a fingerprint of the
catalogs shows that a test has changed the schema, the schema is built again for the next test.
"""

from __future__ import annotations

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.models import Base
from worker.db.engine import Database
from worker.db.migrate import migrate

_USER_SCHEMAS = "nspname NOT LIKE 'pg\\_%' AND nspname <> 'information_schema'"

# OIDs are never given out twice here, so that a table which was dropped and made again is a difference.
_FINGERPRINT = f"""
WITH spaces AS (SELECT oid FROM pg_namespace WHERE {_USER_SCHEMAS}),
relations AS (SELECT * FROM pg_class WHERE relnamespace IN (SELECT oid FROM spaces)),
parts (part) AS (
    SELECT row(oid, relkind, relrowsecurity, relforcerowsecurity, reloptions)::text FROM relations
    UNION ALL SELECT row('a', attrelid, attnum, attname, atttypid, attnotnull, attisdropped)::text FROM pg_attribute
        WHERE attrelid IN (SELECT oid FROM relations)
    UNION ALL SELECT row('d', oid)::text FROM pg_attrdef WHERE adrelid IN (SELECT oid FROM relations)
    UNION ALL SELECT row('c', oid)::text FROM pg_constraint WHERE connamespace IN (SELECT oid FROM spaces)
    UNION ALL SELECT row('t', oid, tgenabled)::text FROM pg_trigger WHERE tgrelid IN (SELECT oid FROM relations)
    UNION ALL SELECT row('p', oid)::text FROM pg_proc WHERE pronamespace IN (SELECT oid FROM spaces)
    UNION ALL SELECT row('y', oid)::text FROM pg_type WHERE typnamespace IN (SELECT oid FROM spaces)
    UNION ALL SELECT row('s', oid)::text FROM pg_statistic_ext
    UNION ALL SELECT row('r', oid)::text FROM pg_policy
    UNION ALL SELECT row('n', oid)::text FROM spaces
)
SELECT md5(string_agg(part, ';' ORDER BY part)) FROM parts
"""

# TRUNCATE costs a new file for each table and index, so only tables that hold anything are truncated.
_EMPTY = f"""
DO $$
DECLARE
    used text;
    counter record;
BEGIN
    SELECT string_agg(c.oid::regclass::text, ', ') INTO used
        FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE {_USER_SCHEMAS} AND c.relkind = 'r' AND c.relname <> 'schema_version' AND pg_relation_size(c.oid) > 0;
    IF used IS NOT NULL THEN
        EXECUTE 'TRUNCATE ' || used || ' CASCADE';
    END IF;
    FOR counter IN SELECT format('%I.%I', schemaname, sequencename)::regclass AS name, start_value
        FROM pg_sequences WHERE last_value IS NOT NULL
    LOOP
        PERFORM setval(counter.name, counter.start_value, false);
    END LOOP;
    DELETE FROM pg_statistic WHERE starelid IN (
        SELECT c.oid FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE {_USER_SCHEMAS});
END $$
"""

# A failed test may have left an open transaction, whose locks would block the next test.
_END_OTHERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""

_built: str | None = None


async def clean(database: Database) -> None:
    """Leave the ledger's tables and those of `tests.models`, empty, and nothing else."""
    global _built
    async with database.engine.begin() as connection:
        await connection.exec_driver_sql(_END_OTHERS)
        if _built is not None and await connection.scalar(text(_FINGERPRINT)) == _built:
            await connection.exec_driver_sql(_EMPTY)
            return
        await _drop_all(connection)
    await migrate(database)
    async with database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        _built = await connection.scalar(text(_FINGERPRINT))


async def _drop_all(connection: AsyncConnection) -> None:
    for name in (
        await connection.scalars(text(f"SELECT quote_ident(nspname) FROM pg_namespace WHERE {_USER_SCHEMAS}"))
    ).all():
        await connection.exec_driver_sql(f"DROP SCHEMA {name} CASCADE")
    await connection.exec_driver_sql("CREATE SCHEMA public")
