"""Real servers for all tests: from wheels, or those that DATABASE_URL and REDIS_URL name."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime

import pytest
import pytest_asyncio
from sqlalchemy import text

from tests.models import Base
from worker.context import Control, JobContext, JobRules
from worker.db.engine import Database
from worker.db.migrate import migrate
from worker.embedded import Services, services
from worker.ledger import Ledger, RunSpec
from worker.settings import Settings, load_settings


@pytest.fixture(scope="session")
def servers() -> Iterator[Services]:
    """PostgreSQL and Valkey for the whole run."""
    with services() as running:
        yield running


@pytest.fixture
def settings(servers: Services) -> Settings:
    """Default settings on these servers."""
    return load_settings(environment={"DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url})


@pytest_asyncio.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    """A migrated database whose test tables are empty."""
    opened = Database(settings, "test")
    await migrate(opened)
    async with opened.engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(text("TRUNCATE worker.run, worker.step, worker.cron_firing"))
    yield opened
    await opened.close()


MakeContext = Callable[..., JobContext]


@pytest_asyncio.fixture
async def context(database: Database, settings: Settings) -> AsyncIterator[MakeContext]:
    """Make contexts; the same `run_id` again is the next try of that run, by another worker."""
    made: list[JobContext] = []

    def make(run_id: str | None = None, *, control: Control | None = None, max_tries: int = 5) -> JobContext:
        spec = RunSpec(run_id or uuid.uuid4().hex, "test", "arq:queue", "{}")
        ctx = JobContext(
            spec=spec,
            attempt=1,
            enqueued_at=datetime.now(UTC),
            settings=settings,
            database=database,
            ledger=Ledger(database, f"worker-{len(made)}"),
            rules=JobRules(max_tries),
            control=control,
        )
        made.append(ctx)
        return ctx

    yield make
    for ctx in made:
        await ctx.close()
