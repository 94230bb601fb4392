"""The fixtures of the pytest plugin; plugin.py documents them."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from sqlalchemy import Connection, MetaData, Table
    from sqlalchemy.ext.asyncio import AsyncSession

    from worker import Client, Settings
    from worker.embedded import Services
    from worker.testing.recorder import Recorder
    from worker.testing.runner import JobRunner
    from worker.types import Database


@pytest.fixture(scope="session")
def longhaul_servers() -> Iterator[Services]:
    """PostgreSQL and Valkey for the whole run.

    DATABASE_URL and REDIS_URL are not used: they may name a database whose rows matter. Set LONGHAUL_TEST_DATABASE_URL
    and LONGHAUL_TEST_REDIS_URL to use existing servers.
    """
    from worker.embedded import services

    given = {name: os.environ.get(f"LONGHAUL_TEST_{name}", "") for name in ("DATABASE_URL", "REDIS_URL")}
    with services(environment={name: url for name, url in given.items() if url}) as running:
        yield running


@pytest.fixture
def longhaul_settings(longhaul_servers: Services) -> Settings:
    """Default settings for these servers."""
    from worker import load_settings

    urls = {"DATABASE_URL": longhaul_servers.database_url, "REDIS_URL": longhaul_servers.redis_url}
    # A replica in the settings file would be that of another server.
    return load_settings(environment=urls, overrides={"database": {"replica_url": None}})


@pytest_asyncio.fixture
async def longhaul_database(longhaul_settings: Settings, longhaul_metadata: MetaData | None) -> AsyncIterator[Database]:
    """A database with the ledger's tables, and with those of `longhaul_metadata`.

    Tables that this fixture has created are dropped after the test, with their rows; tables that existed stay.
    """
    async with _open_database(longhaul_settings, longhaul_metadata) as database:
        yield database


@asynccontextmanager
async def _open_database(settings: Settings, metadata: MetaData | None) -> AsyncIterator[Database]:
    from worker.db.migrate import migrate
    from worker.job.propagation import current_job
    from worker.types import Database

    database = Database(settings, "test", job_name=current_job.get)
    created: list[Table] = []
    try:
        await migrate(database)
        if metadata is not None:
            async with database.engine.begin() as connection:
                created = await connection.run_sync(_create_missing, metadata)
        yield database
    finally:
        try:
            if created and metadata is not None:
                async with database.engine.begin() as connection:
                    await connection.run_sync(metadata.drop_all, tables=created)
        finally:
            await database.close()


def _create_missing(connection: Connection, metadata: MetaData) -> list[Table]:
    """Create the tables that do not exist, and return them."""
    from sqlalchemy import inspect

    inspector = inspect(connection)
    missing = [table for table in metadata.sorted_tables if not inspector.has_table(table.name, schema=table.schema)]
    metadata.create_all(connection, tables=missing)
    return missing


@pytest.fixture
def longhaul_metadata() -> MetaData | None:
    """The metadata of your tables. Override this with your `Base.metadata`: its tables are created for each test."""
    return None


@pytest_asyncio.fixture
async def pg_session(longhaul_database: Database) -> AsyncIterator[AsyncSession]:
    """A session whose commits are savepoints of one transaction, which is rolled back after the test."""
    from sqlalchemy.ext.asyncio import AsyncSession

    connection = await longhaul_database.engine.connect()
    try:
        transaction = await connection.begin()
        session = AsyncSession(connection, expire_on_commit=False, join_transaction_mode="create_savepoint")
        try:
            yield session
        finally:
            await session.close()
            await transaction.rollback()
    finally:
        await connection.close()


@pytest_asyncio.fixture
async def sqlite_session(longhaul_metadata: MetaData | None) -> AsyncIterator[AsyncSession]:
    """A session on an in-memory SQLite, new for each test.

    All sessions share one connection (a static pool), because each connection would have an empty database of its own.
    """
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
    from sqlalchemy.pool import StaticPool

    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    if longhaul_metadata is not None:
        async with engine.begin() as connection:
            await connection.run_sync(longhaul_metadata.create_all)
    async with AsyncSession(engine, expire_on_commit=False) as session:
        yield session
    await engine.dispose()


#: A Redis in this process has plain names, whatever settings.toml says.
_PLAIN_REDIS = {"redis": {"url": "redis://localhost", "namespace": None}}


@pytest_asyncio.fixture
async def queue() -> AsyncIterator[Client]:
    """A client with Redis in this process: assert on the runs that your code enqueues, without a server."""
    from fakeredis import FakeAsyncRedis

    from worker import Client, load_settings

    redis = FakeAsyncRedis()
    async with Client(load_settings(environment={}, overrides=_PLAIN_REDIS), redis=redis) as client:
        yield client
    await redis.aclose()


@pytest_asyncio.fixture
async def enqueued(request: pytest.FixtureRequest) -> AsyncIterator[Recorder]:
    """The recorder of the runs that a test enqueues: `enqueued.assert_one(job, user_id=7)`, `enqueued.run_all()`."""
    from worker import load_settings
    from worker.testing.recorder import Recorder
    from worker.testing.runner import JobRunner

    made: list[JobRunner] = []
    async with AsyncExitStack() as stack:

        async def make_runner() -> JobRunner:
            if "run_job" in request.fixturenames:
                runner: JobRunner = request.getfixturevalue("run_job")
                return runner
            if not made:
                settings = request.getfixturevalue("longhaul_settings")
                metadata = request.getfixturevalue("longhaul_metadata")
                database = await stack.enter_async_context(_open_database(settings, metadata))
                made.append(JobRunner(database, settings))
                stack.callback(made[0].close)
            return made[0]

        recorder = Recorder(load_settings(environment={}, overrides=_PLAIN_REDIS), make_runner)
        stack.push_async_callback(recorder.close)
        yield recorder


@pytest.fixture
def run_job(longhaul_database: Database, longhaul_settings: Settings) -> Iterator[JobRunner]:
    """Run jobs: `await run_job(job, days=90)`."""
    from worker.testing.runner import JobRunner

    runner = JobRunner(longhaul_database, longhaul_settings)
    yield runner
    runner.close()
