"""Workers in the test's own process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from worker import Job, Settings
from worker.runtime.launch import work
from worker.runtime.worker import QueueWorker
from worker.types import Registry


@asynccontextmanager
async def working(settings: Settings, *jobs: Job[..., Any], burst: bool = False) -> AsyncIterator[QueueWorker]:
    """Run a worker in this process; drain it at the end."""
    ready: asyncio.Future[QueueWorker] = asyncio.get_running_loop().create_future()
    task = asyncio.create_task(work(settings, Registry(jobs), burst=burst, on_worker=ready.set_result))
    await asyncio.wait({ready, task}, return_when=asyncio.FIRST_COMPLETED)
    if not ready.done():
        await task  # it has failed
    worker = await ready
    try:
        yield worker
    finally:
        if not task.done():
            worker.drain()
        await task


def with_worker(settings: Settings, **values: Any) -> Settings:
    """Return settings with other values in the section `worker`."""
    return settings.model_copy(update={"worker": settings.worker.model_copy(update=values)})
