"""Workers in the test's own process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from worker import Job, Settings
from worker.launch import running
from worker.runtime.worker import Worker


@asynccontextmanager
async def working(settings: Settings, *jobs: Job[..., Any], burst: bool = False) -> AsyncIterator[Worker]:
    """Run a worker in this process; drain it at the end."""
    async with running(settings, jobs=jobs, burst=burst) as worker:
        yield worker


def with_worker(settings: Settings, **values: Any) -> Settings:
    """Return settings with other values in the section `worker`."""
    return settings.model_copy(update={"worker": settings.worker.model_copy(update=values)})


def with_web(settings: Settings, **values: Any) -> Settings:
    """Return settings with other values in the section `web`."""
    return settings.model_copy(update={"web": settings.web.model_copy(update=values)})
