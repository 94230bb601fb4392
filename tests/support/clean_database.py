"""An empty database for each test, without creating its tables again for each test.

The schema is built once in a process. Between tests, rows, sequences and statistics are reset. A fingerprint of the
catalogs shows whether a test has changed the schema: objects that the test added are dropped. If the fingerprint still
differs, an object of the schema itself was changed, and the schema is built again.
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

# TRUNCATE costs a new file for each table and index, so only tables are truncated that hold rows, or a number of rows
# (of an ANALYZE after the last row was deleted).
_EMPTY = f"""
DO $$
DECLARE
    used text;
    counter record;
BEGIN
    SELECT string_agg(c.oid::regclass::text, ', ') INTO used
        FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
        WHERE {_USER_SCHEMAS} AND c.relkind = 'r' AND c.relname <> 'schema_version'
            AND (pg_relation_size(c.oid) > 0 OR c.reltuples >= 0);
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

# The objects that were made after the schema: their OIDs are higher than those of the schema.
_DROP_ADDED = f"""
DO $$
DECLARE
    added record;
BEGIN
    FOR added IN
        WITH spaces AS (SELECT oid FROM pg_namespace WHERE {_USER_SCHEMAS}),
        found (place, oid, command) AS (
            SELECT 1, oid, format('EXTENSION %I', extname) FROM pg_extension
            UNION ALL SELECT 2, oid, format('SCHEMA %I', nspname) FROM pg_namespace
                WHERE {_USER_SCHEMAS}
            UNION ALL SELECT 3, oid, format('%s %s',
                CASE relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE'
                    WHEN 'c' THEN 'TYPE' WHEN 'f' THEN 'FOREIGN TABLE' WHEN 'i' THEN 'INDEX' ELSE 'TABLE' END,
                oid::regclass) FROM pg_class WHERE relnamespace IN (SELECT oid FROM spaces) AND relkind IN
                ('r', 'p', 'v', 'm', 'S', 'c', 'f', 'i')
            UNION ALL SELECT 4, oid, format('TRIGGER %I ON %s', tgname, tgrelid::regclass) FROM pg_trigger
                WHERE NOT tgisinternal
            UNION ALL SELECT 4, oid, format('POLICY %I ON %s', polname, polrelid::regclass) FROM pg_policy
            UNION ALL SELECT 5, oid, format('ROUTINE %s', oid::regprocedure) FROM pg_proc
                WHERE pronamespace IN (SELECT oid FROM spaces)
            UNION ALL SELECT 6, oid, format('TYPE %s', oid::regtype) FROM pg_type
                WHERE typnamespace IN (SELECT oid FROM spaces) AND typtype IN ('b', 'd', 'e', 'r')
                AND typcategory <> 'A'
        )
        SELECT * FROM found WHERE oid > $newest ORDER BY place, oid
    LOOP
        BEGIN
            EXECUTE 'DROP ' || added.command || ' CASCADE';
        EXCEPTION WHEN OTHERS THEN NULL;  -- it went with an object before it; the fingerprint has the last word
        END;
    END LOOP;
END $$
"""

# A failed test may have left an open transaction, whose locks would block the next test.
_END_OTHERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""

_NEWEST = """
SELECT max(oid::bigint) FROM (
    SELECT oid FROM pg_class UNION ALL SELECT oid FROM pg_proc UNION ALL SELECT oid FROM pg_type
    UNION ALL SELECT oid FROM pg_namespace UNION ALL SELECT oid FROM pg_trigger
) AS all_objects
"""

#: Of the schema that was built last: its fingerprint, and its highest OID.
_built: tuple[str, int] | None = None


async def clean(database: Database) -> None:
    """Leave the ledger's tables and those of `tests.models`, empty, and nothing else."""
    async with database.engine.begin() as connection:
        await connection.exec_driver_sql(_END_OTHERS)
        if await _is_as_built(connection):
            await connection.exec_driver_sql(_EMPTY)
            return
        await _drop_all(connection)
    await migrate(database)
    async with database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await _note_built(connection)


async def _is_as_built(connection: AsyncConnection) -> bool:
    """Return whether the schema is the one that was built, after what was added to it is dropped."""
    if _built is None:
        return False
    fingerprint, newest = _built
    if await connection.scalar(text(_FINGERPRINT)) == fingerprint:
        return True
    await connection.exec_driver_sql(_DROP_ADDED.replace("$newest", str(newest)))
    return bool(await connection.scalar(text(_FINGERPRINT)) == fingerprint)


async def _note_built(connection: AsyncConnection) -> None:
    global _built
    fingerprint = await connection.scalar(text(_FINGERPRINT))
    newest = await connection.scalar(text(_NEWEST))
    _built = (str(fingerprint), int(newest or 0))


async def _drop_all(connection: AsyncConnection) -> None:
    for name in (
        await connection.scalars(text(f"SELECT quote_ident(nspname) FROM pg_namespace WHERE {_USER_SCHEMAS}"))
    ).all():
        await connection.exec_driver_sql(f"DROP SCHEMA {name} CASCADE")
    await connection.exec_driver_sql("CREATE SCHEMA public")
