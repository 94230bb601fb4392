"""The stock client, and workers of the facade without a database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from arq import create_pool
from arq.connections import ArqRedis, RedisSettings
from redis.asyncio import Redis

from tests.arq_compat.functions import MakeWorker, add, gate, seen
from worker import Settings
from worker.arq_compat import Worker
from worker.settings import load_settings


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Clear the records of the previous test."""
    seen.clear()
    gate.clear()
    gate["go"] = asyncio.Event()


@pytest_asyncio.fixture
async def arq(settings: Settings, redis: Redis) -> AsyncIterator[ArqRedis]:
    """The stock client with its default, pickles."""
    pool = await create_pool(RedisSettings.from_dsn(settings.redis.url))
    yield pool
    await pool.aclose(close_connection_pool=True)


@pytest_asyncio.fixture
async def make(settings: Settings, arq: ArqRedis) -> AsyncIterator[MakeWorker]:
    """Make workers without a database; closed at the end."""
    made: list[Worker] = []
    # A query to PostgreSQL would not be answered.
    nowhere = load_settings(
        environment={
            "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
            "REDIS_URL": settings.redis.url,
            "LONGHAUL_WORKER__LEASE_SECONDS": "0.6",
        }
    )

    def make_one(functions: Any = (add,), **arguments: Any) -> Worker:
        arguments = {"settings": nowhere, "burst": True, "handle_signals": False, "accept_pickle": True} | arguments
        worker = Worker(functions, **arguments)
        made.append(worker)
        return worker

    yield make_one
    gate["go"].set()
    for worker in made:
        await worker.close()
