"""The ledger's migrations."""

from __future__ import annotations

import asyncio

import pytest
import pytest_asyncio
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, text

from worker import Settings
from worker.db.engine import Database
from worker.db.migrate import check_migrated, migrate
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
