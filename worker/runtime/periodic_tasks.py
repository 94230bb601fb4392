"""The periodic tasks of a worker: cron, rescue, relay, pruning, retries by command, health.

Each has an interval and a time limit. A periodic task that hangs, for example on a half-open connection, does not delay
the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from worker.errors import format_error
from worker.queue.outage_log import OutageLog
from worker.runtime.server_retry import WorkerState
from worker.runtime.supervision import end_tasks, supervise

logger = logging.getLogger("longhaul.tasks")

_AWAY_SECONDS = 1.0
_CANCEL_SECONDS = 5.0


@dataclass(frozen=True)
class PeriodicTask:
    """Work that a worker does periodically.

    Attributes:
        name: the name in log lines.
        run: does the work once.
        interval_seconds: pause between two runs, in seconds.
        limit_seconds: longest time for one run, in seconds.
        while_draining: whether it continues while the worker drains.
    """

    name: str
    run: Callable[[], Awaitable[Any]]
    interval_seconds: float = 0.2
    limit_seconds: float = 60.0
    while_draining: bool = False


async def _run_within_limit(task: PeriodicTask) -> None:
    """Run a periodic task once, within its limit.

    It may wait for something that cannot be cancelled, for example the end of a transaction on a connection that does
    not answer. It then keeps running in the background, and is started again.

    Raises:
        TimeoutError: it took longer than its limit.
    """
    running = asyncio.ensure_future(task.run())
    try:
        await asyncio.wait({running}, timeout=task.limit_seconds)
        if running.done():
            await running
            return
    except asyncio.CancelledError:
        running.cancel()
        raise
    remaining = await end_tasks([running], seconds=_CANCEL_SECONDS)
    end = "it ignores its cancellation and still runs" if remaining else "it was cancelled"
    raise TimeoutError(f"it took longer than {task.limit_seconds:g} s: {end}; it is started again")


class PeriodicTasks:
    """Runs the periodic tasks of a worker.

    Args:
        tasks: the periodic tasks.
        state: the state of the worker.
        outage: logs outages of Redis.
    """

    def __init__(self, tasks: Sequence[PeriodicTask], state: WorkerState, outage: OutageLog) -> None:
        self._tasks = tasks
        self._state = state
        self._outage = outage

    def start(self) -> list[asyncio.Task[None]]:
        """Start an asyncio task for each. The caller has to cancel them."""
        return [
            asyncio.create_task(supervise(task.name, partial(self._repeat, task)), name=task.name)
            for task in self._tasks
        ]

    async def _repeat(self, task: PeriodicTask) -> None:
        """Repeat a periodic task. If a server is unavailable, wait for it."""
        cannot = f"periodic task {task.name} cannot run"
        failing = False
        while True:
            if task.while_draining or not self._state.is_draining:
                try:
                    await _run_within_limit(task)
                    self._outage.answered(cannot)
                    failing = False
                except RedisError as error:
                    self._outage.failed(cannot, error)
                    await asyncio.sleep(_AWAY_SECONDS)
                except (SQLAlchemyError, OSError, TimeoutError) as error:
                    if not failing:
                        logger.warning("periodic task failed task=%s error=%s", task.name, format_error(error))
                    failing = True
                    await asyncio.sleep(_AWAY_SECONDS)
            await asyncio.sleep(task.interval_seconds)
