"""The fixtures of the pytest plugin; plugin.py documents them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from sqlalchemy import MetaData
    from sqlalchemy.ext.asyncio import AsyncSession

    from worker import Client, Settings
    from worker.embedded import Services
    from worker.testing.runner import JobRunner
    from worker.types import Database


@pytest.fixture(scope="session")
def longhaul_servers() -> Iterator[Services]:
    """PostgreSQL and Valkey for the whole run."""
    from worker.embedded import services

    with services() as running:
        yield running


@pytest.fixture
def longhaul_settings(longhaul_servers: Services) -> Settings:
    """Default settings for these servers."""
    from worker import load_settings

    urls = {"DATABASE_URL": longhaul_servers.database_url, "REDIS_URL": longhaul_servers.redis_url}
    return load_settings(environment=urls)


@pytest_asyncio.fixture
async def longhaul_database(longhaul_settings: Settings) -> AsyncIterator[Database]:
    """A database with the ledger's tables, and with those of `longhaul_metadata`."""
    from worker.db.migrate import migrate
    from worker.job.propagation import current_job
    from worker.types import Database

    database = Database(longhaul_settings, "test", job_name=current_job.get)
    await migrate(database)
    yield database
    await database.close()


@pytest.fixture
def longhaul_metadata() -> MetaData | None:
    """The metadata of your tables. Override this with your `Base.metadata`."""
    return None


@pytest_asyncio.fixture
async def pg_session(longhaul_database: Database, longhaul_metadata: MetaData | None) -> AsyncIterator[AsyncSession]:
    """A session whose commits are savepoints of one transaction, which is rolled back after the test."""
    from sqlalchemy.ext.asyncio import AsyncSession

    connection = await longhaul_database.engine.connect()
    try:
        transaction = await connection.begin()
        if longhaul_metadata is not None:
            await connection.run_sync(longhaul_metadata.create_all)
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


@pytest_asyncio.fixture
async def queue() -> AsyncIterator[Client]:
    """A client with Redis in this process: assert on the runs that your code enqueues, without a server."""
    from fakeredis import FakeAsyncRedis

    from worker import Client, load_settings

    redis = FakeAsyncRedis()
    async with Client(load_settings(environment={}), redis=redis) as client:
        yield client
    await redis.aclose()


@pytest.fixture
def run_job(longhaul_database: Database, longhaul_settings: Settings) -> Iterator[JobRunner]:
    """Run jobs: `await run_job(job, days=90)`."""
    from worker.testing.runner import JobRunner

    runner = JobRunner(longhaul_database, longhaul_settings)
    yield runner
    runner.close()
