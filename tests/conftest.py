"""Real servers for all tests, from wheels; each xdist worker has its own."""

from __future__ import annotations

import gc
import os
from collections.abc import AsyncIterator, Generator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from tests.support.clean_database import clean
from tests.support.command_line import CommandLine
from tests.support.contexts import MakeContext
from tests.support.servers import PGBOUNCER_VARIABLE, own_servers
from tests.support.workers import with_worker
from worker import Client
from worker.attempt.context import JobContext
from worker.attempt.control import AttemptControl
from worker.db.engine import Database
from worker.embedded import Services
from worker.job.propagation import current_job
from worker.settings import Settings, load_settings
from worker.testing.runner import JobRunner


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Refuse ids that differ in each process, which xdist could not tell apart. Run the longest tests first.

    Those of the page wait for a browser: at the end, one process would run them while the others have nothing to do.
    """
    items.sort(key=lambda item: "web/page" not in item.nodeid)
    for item in items:
        if " object at 0x" in item.nodeid:
            raise pytest.UsageError(f"{item.nodeid} has an address in its id: give the parameter an id of its own")


gc.disable()  # until all tests are collected


def pytest_collection_finish() -> None:
    """Keep what was imported out of each later garbage collection."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Escape what UTF-8 cannot hold: some tests log lone surrogates, and xdist sends captured logs as UTF-8."""
    return escape_surrogates((yield))


def escape_surrogates(value: Any) -> Any:
    """Return a value made of dicts, lists and strings with its lone surrogates escaped."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {key: escape_surrogates(one) for key, one in value.items()}
    if isinstance(value, list | tuple):  # pytest reads the reason of a skip from a tuple
        return type(value)(escape_surrogates(one) for one in value)
    return value


@pytest.fixture(scope="session")
def longhaul_servers() -> Iterator[Services]:
    """PostgreSQL and Valkey of this process alone, for its whole run."""
    with own_servers() as running:
        yield running


@pytest.fixture(scope="session")
def servers(longhaul_servers: Services) -> Services:
    """PostgreSQL and Valkey for the whole run."""
    return longhaul_servers


@pytest.fixture
def settings(servers: Services, longhaul_servers: Services) -> Settings:
    """Default settings on these servers."""
    environment = {"DATABASE_URL": servers.database_url, "REDIS_URL": servers.redis_url}
    # Its detection would cost each test another connection.
    is_direct = servers is longhaul_servers and PGBOUNCER_VARIABLE not in os.environ
    return load_settings(environment=environment, overrides={"database": {"pgbouncer": False}} if is_direct else {})


@pytest.fixture
def empty_tables(servers: Services) -> None:
    """The schema of the tests as it was built, with empty tables."""
    clean(servers)


@pytest_asyncio.fixture
async def database(empty_tables: None, settings: Settings) -> AsyncIterator[Database]:
    """A migrated database whose test tables are empty."""
    opened = Database(settings, "test", job_name=current_job.get)
    yield opened
    await opened.close()


@pytest_asyncio.fixture
async def context(database: Database, settings: Settings) -> AsyncIterator[MakeContext]:
    """Make contexts. The same `run_id` again is the next attempt of that run, by another worker."""
    made: list[JobContext] = []

    runner = JobRunner(database, settings)

    def make(run_id: str | None = None, *, control: AttemptControl | None = None, max_attempts: int = 5) -> JobContext:
        ctx = runner.context("test", run_id, max_attempts=max_attempts, control=control)
        made.append(ctx)
        return ctx

    yield make
    for ctx in made:
        await ctx._attempt.close()


@pytest_asyncio.fixture
async def redis(settings: Settings) -> AsyncIterator[Redis]:
    """An empty Redis."""
    connection = Redis.from_url(settings.redis.url)
    await connection.flushall()
    yield connection
    await connection.aclose()


@pytest_asyncio.fixture
async def client(settings: Settings, redis: Redis) -> AsyncIterator[Client]:
    """A client of the same queue."""
    async with Client(settings) as opened:
        yield opened


@pytest.fixture
def cli(servers: Services) -> CommandLine:
    """The command line in this process, on the servers of the tests."""
    return CommandLine(servers)


@pytest.fixture
def real_cli(servers: Services) -> CommandLine:
    """The command line, each command in a process of its own."""
    return CommandLine(servers, real=True)


@pytest.fixture
def fast(settings: Settings) -> Settings:
    """The same servers, with short times."""
    return with_worker(
        settings,
        poll_interval_seconds=0.02,
        backoff_base_seconds=0.05,
        backoff_max_seconds=0.2,
        lease_seconds=5.0,
        rescue_interval_seconds=0.5,
        drain_timeout_seconds=2.0,
    )
