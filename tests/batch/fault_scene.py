"""Authors for tests of failures, and a runner whose records are clear."""

from __future__ import annotations

import pytest

from tests.support.authors import fill_authors
from worker import Settings
from worker.db.engine import Database
from worker.testing.runner import JobRunner

ROWS, SIZE = 40, 10
LIMIT_SECONDS = 60


calls: dict[str, int] = {}


@pytest.fixture(name="run")
async def forty_rows(database: Database, settings: Settings) -> JobRunner:
    """Forty rows, and a runner."""
    calls.clear()
    await fill_authors(database, ROWS)
    return JobRunner(database, settings)
