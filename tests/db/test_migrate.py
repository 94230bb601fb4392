"""The ledger's migrations."""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text

from tests.support.command_line import CommandLine
from worker import Settings
from worker.db.engine import Database
from worker.db.migrate import check_migrated, known_revisions, migrate
from worker.db.tables import SCHEMA, metadata
from worker.errors import DatabaseNotMigrated


@pytest_asyncio.fixture
async def empty(settings: Settings, database: Database) -> Database:
    """A database without the schema; the tests after this one make it again."""
    async with database.connection() as connection:
        await connection.execute(text(f"DROP SCHEMA {SCHEMA} CASCADE"))
    return database


async def test_many_at_once_migrate_once(empty: Database) -> None:
    with pytest.raises(DatabaseNotMigrated, match="run `worker migrate`"):
        await check_migrated(empty)
    revisions = await asyncio.gather(*(migrate(empty) for _ in range(5)))
    assert len(set(revisions)) == 1
    await check_migrated(empty)
    assert await migrate(empty) == revisions[0]


async def test_the_migrations_make_the_tables_that_the_code_declares(empty: Database) -> None:
    await migrate(empty)

    def differences(connection: Connection) -> list[object]:
        options = {
            "include_schemas": True,
            "include_name": lambda name, kind, parents: kind != "schema" or name == SCHEMA,
            "include_object": lambda item, name, *rest: name != "schema_version",
        }
        context = MigrationContext.configure(connection, opts={**options, "compare_type": True})
        return list(compare_metadata(context, metadata))

    async with empty.connection() as connection:
        assert await connection.run_sync(differences) == []


async def test_a_newer_database_than_the_worker_passes(database: Database) -> None:
    async with database.connection() as connection:
        await connection.execute(text(f"UPDATE {SCHEMA}.schema_version SET version_num = '9999'"))
    try:
        await check_migrated(database)
    finally:
        async with database.connection() as connection:
            await connection.execute(text(f"DROP SCHEMA {SCHEMA} CASCADE"))
        await migrate(database)


async def test_a_newer_ledger_stays_and_an_older_worker_says_so(database: Database, cli: CommandLine) -> None:
    async with database.connection() as connection:
        await connection.execute(text(f"UPDATE {SCHEMA}.schema_version SET version_num = '9999'"))
    try:
        assert await migrate(database) == "9999"
        ran = await cli("migrate")
        assert (ran.returncode, ran.stderr) == (0, "")
        assert ran.stdout.startswith("schema worker is at revision 9999, newer than the ")
        assert ran.stdout.count("\n") == 1
        async with database.connection() as connection:
            await connection.execute(text(f"COMMENT ON SCHEMA {SCHEMA} IS 'oldest-revision=9998'"))
        with pytest.raises(DatabaseNotMigrated, match="deploy the newer version"):
            await check_migrated(database)
        with pytest.raises(DatabaseNotMigrated, match="deploy the newer version"):
            await migrate(database)
        assert (await cli("migrate")).returncode == 78
    finally:
        async with database.connection() as connection:
            await connection.execute(text(f"DROP SCHEMA {SCHEMA} CASCADE"))


async def test_migrations_as_sql_make_the_same_tables(empty: Database, cli: CommandLine) -> None:
    printed = (await cli("migrate", "--sql")).stdout
    async with empty.connection() as connection:
        raw = (await connection.get_raw_connection()).driver_connection
        assert raw is not None
        await raw.execute(printed)
    await check_migrated(empty)
    assert await migrate(empty) == known_revisions()[0]
