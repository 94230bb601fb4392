"""The tables of the jobs, empty."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from jobs.models import Base
from worker import Settings
from worker.testing.runner import JobRunner
from worker.types import Database


@pytest_asyncio.fixture
async def tables(database: Database) -> AsyncIterator[Database]:
    """The jobs' tables, made for one test."""
    async with database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
    yield database
    async with database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)


@pytest.fixture
def run_job(tables: Database, settings: Settings) -> JobRunner:
    """Run jobs on these tables."""
    return JobRunner(tables, settings)
