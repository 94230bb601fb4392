"""An empty database for each test, without creating its tables again for each test.

The schema is built once for a server, and kept as a template. Between tests, rows, sequences and statistics are reset.
A fingerprint of the catalogs shows whether a test has changed the schema: objects that the test added are dropped. If
the fingerprint still differs, an object of the schema itself was changed, and the database is made from the template
again. All of it is done in one session that stays open: a new one costs the server more than the work itself.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import psycopg

from tests.models import Base
from worker.db.engine import Database
from worker.db.migrate import migrate
from worker.embedded import Services
from worker.settings import load_settings

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

_END_ALL = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname IN (%s, %s)"

_SCHEMAS = f"SELECT quote_ident(nspname) FROM pg_namespace WHERE {_USER_SCHEMAS}"

_NEWEST = """
SELECT max(oid::bigint) FROM (
    SELECT oid FROM pg_class UNION ALL SELECT oid FROM pg_proc UNION ALL SELECT oid FROM pg_type
    UNION ALL SELECT oid FROM pg_namespace UNION ALL SELECT oid FROM pg_trigger
) AS all_objects
"""

#: The databases that have been cleaned, by URL.
_databases: dict[str, _TestDatabase] = {}


def clean(services: Services) -> None:
    """Leave the ledger's tables and those of `tests.models`, empty, and nothing else.

    It blocks; call it by `asyncio.to_thread` where an event loop runs.
    """
    assert services.postgres is not None
    url = services.postgres.url  # the server itself, also where the services are behind a PgBouncer
    _databases.setdefault(url, _TestDatabase(url)).clean()


class _TestDatabase:
    """A database, the session that cleans it, and the template that it is made from."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._name = urlsplit(url).path.lstrip("/")
        self._template = f"{self._name}_template"
        self._session: psycopg.Connection[tuple[str]] | None = None
        #: Of the schema that was built: its fingerprint, and its highest OID.
        self._built: tuple[str, str] | None = None

    def clean(self) -> None:
        """End all other sessions, and leave the schema as it was built, with empty tables."""
        try:
            self._clean(self._open())
        except psycopg.OperationalError:  # a test has ended the server, or this session
            self._close()
            self._clean(self._open())

    def _clean(self, session: psycopg.Connection[tuple[str]]) -> None:
        session.execute(_END_OTHERS)
        if self._built is None:
            self._build(session)
        elif not self._is_as_built(session, *self._built):
            self._replace(self._name, self._template)
        else:
            session.execute(_EMPTY)

    def _open(self) -> psycopg.Connection[tuple[str]]:
        if self._session is None or self._session.closed:
            self._session = psycopg.connect(self._url, autocommit=True, application_name="clean_database")
        return self._session

    def _close(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None

    def _is_as_built(self, session: psycopg.Connection[tuple[str]], fingerprint: str, newest: str) -> bool:
        """Return whether the schema is the one that was built, after what was added to it is dropped."""
        if _scalar(session, _FINGERPRINT) == fingerprint:
            return True
        session.execute(_DROP_ADDED.replace("$newest", newest).encode())
        return _scalar(session, _FINGERPRINT) == fingerprint

    def _build(self, session: psycopg.Connection[tuple[str]]) -> None:
        for (name,) in session.execute(_SCHEMAS).fetchall():
            session.execute(f"DROP SCHEMA {name} CASCADE".encode())
        session.execute("CREATE SCHEMA public")
        with ThreadPoolExecutor(1) as thread:  # the event loop of this one belongs to the tests
            thread.submit(asyncio.run, self._create()).result()
        self._built = _scalar(session, _FINGERPRINT), _scalar(session, _NEWEST)
        self._replace(self._template, self._name)

    async def _create(self) -> None:
        settings = load_settings(environment={"DATABASE_URL": self._url})
        database = Database(settings, "test")
        await migrate(database)
        async with database.engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        await database.close()

    def _replace(self, name: str, template: str) -> None:
        """Make a database anew as a copy of another; no session may use either."""
        self._close()
        elsewhere = urlsplit(self._url)._replace(path="/template1").geturl()
        with psycopg.connect(elsewhere, autocommit=True) as session:
            session.execute(_END_ALL, [name, template])
            session.execute(f'DROP DATABASE IF EXISTS "{name}"'.encode())
            session.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())


def _scalar(session: psycopg.Connection[tuple[str]], query: str) -> str:
    row = session.execute(query.encode()).fetchone()
    assert row is not None
    return str(row[0])
