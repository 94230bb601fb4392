"""A pytest plugin for authors of jobs: sessions, a queue, and `run_job`.

It is found by pytest by itself where Longhaul is installed with its extra `testing`. Fixtures:

| fixture | what it is |
| --- | --- |
| `longhaul_servers` | PostgreSQL and Valkey for the whole run: embedded, or those of DATABASE_URL and REDIS_URL |
| `longhaul_settings` | settings on these servers |
| `longhaul_database` | a migrated `Database` |
| `longhaul_metadata` | your tables, for the two sessions below: override it with your `Base.metadata` |
| `pg_session` | a session on PostgreSQL that is rolled back after the test, whatever it commits |
| `sqlite_session` | a session on an in-memory SQLite, for quick units |
| `queue` | a `Client` on fakeredis: what is enqueued stays there |
| `run_job` | `await run_job(job, days=90)`: a job, run to its end in this process |
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import pytest
import pytest_asyncio

if TYPE_CHECKING:
    from sqlalchemy import MetaData
    from sqlalchemy.ext.asyncio import AsyncSession

    from worker import Client, Job, Settings
    from worker.attempt.context import JobContext
    from worker.attempt.control import AttemptControl
    from worker.attempt.offload import JobPools
    from worker.embedded import Services
    from worker.throttles import Throttle
    from worker.types import Database

P = ParamSpec("P")
R = TypeVar("R")


@pytest.fixture(scope="session")
def longhaul_servers() -> Iterator[Services]:
    """PostgreSQL and Valkey for the whole run."""
    from worker.embedded import services

    with services() as running:
        yield running


@pytest.fixture
def longhaul_settings(longhaul_servers: Services) -> Settings:
    """Default settings on these servers."""
    from worker import load_settings

    urls = {"DATABASE_URL": longhaul_servers.database_url, "REDIS_URL": longhaul_servers.redis_url}
    return load_settings(environment=urls)


@pytest_asyncio.fixture
async def longhaul_database(longhaul_settings: Settings) -> AsyncIterator[Database]:
    """A database with the ledger's tables, and with yours, if `longhaul_metadata` names them."""
    from worker.db.migrate import migrate
    from worker.job.propagation import current_job
    from worker.types import Database

    database = Database(longhaul_settings, "test", job_name=current_job.get)
    await migrate(database)
    yield database
    await database.close()


@pytest.fixture
def longhaul_metadata() -> MetaData | None:
    """Override this with your `Base.metadata`."""
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

    One connection serves all (a static pool): else each would see an empty database of its own.
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
    """A client whose Redis is in this process: assert on what your code enqueues, with no server."""
    from fakeredis import FakeAsyncRedis

    from worker import Client, load_settings

    redis = FakeAsyncRedis()
    async with Client(load_settings(environment={}), redis=redis) as client:
        yield client
    await redis.aclose()


class JobRunner:
    """Runs jobs as a worker does, without a queue.

    Args:
        database: where they work.
        settings: of the batches.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        from worker.attempt.offload import JobPools

        self._database = database
        self.settings = settings
        self._pools: JobPools = JobPools(
            max_threads=settings.worker.max_threads, max_processes=settings.worker.max_job_processes
        )

    def close(self) -> None:
        """End the threads and processes of plain functions."""
        self._pools.close()

    async def __call__(self, job: Job[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a job to its end; arguments and result go through JSON, as in production.

        Returns:
            What a client would get.

        Raises:
            BaseException: what the job raises; what it has committed stays.
        """
        return await self.attempt(job, uuid.uuid4().hex, *args, **kwargs)

    async def attempt(self, job: Job[P, R], run_id: str, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run one try of a run; the same id again is its next try, which goes on after the last checkpoint."""
        from worker.job.middleware import load_middleware, run_hooks, through

        ctx = self.context(job.name, run_id, throttles=job.throttles)
        attempt = ctx._attempt
        try:
            arguments = job.decode_arguments([], job.encode_arguments(args, kwargs))
            try:
                hooks = run_hooks(load_middleware(self.settings.worker.middleware))
                value = await through(hooks, ctx, lambda: attempt.run(job, ctx, arguments))
            except BaseException as error:
                if attempt.ledger_run is not None:
                    await attempt.ledger_run.release("waiting", failed=True, error=str(error))
                raise
            text = job.encode_result(value)
            if attempt.ledger_run is not None:
                await attempt.ledger_run.finish("succeeded", result=text)
        finally:
            await attempt.close()
        result: R = job.decode_result_json(text)
        return result

    def context(
        self,
        job: str = "test",
        run_id: str | None = None,
        *,
        max_attempts: int = 5,
        control: AttemptControl | None = None,
        throttles: tuple[Throttle, ...] = (),
    ) -> JobContext:
        """Return a context outside of any worker."""
        from worker.attempt.attempt import Attempt
        from worker.attempt.context import JobContext
        from worker.attempt.control import NoControl
        from worker.ledger import Ledger, RunSpec

        chosen = run_id or uuid.uuid4().hex
        attempt = Attempt(
            run_id=chosen,
            job=job,
            number=1,
            spec=lambda: RunSpec(chosen, job, "arq:queue", "{}"),
            settings=self.settings,
            database=self._database,
            ledger=Ledger(self._database, f"test-{uuid.uuid4().hex[:6]}"),
            control=control or NoControl(),
            pools=self._pools,
            max_attempts=max_attempts,
            throttles=throttles,
        )
        return JobContext(attempt, enqueued_at=datetime.now(UTC))


@pytest.fixture
def run_job(longhaul_database: Database, longhaul_settings: Settings) -> Iterator[JobRunner]:
    """Run jobs: `await run_job(job, days=90)`."""
    runner = JobRunner(longhaul_database, longhaul_settings)
    yield runner
    runner.close()
