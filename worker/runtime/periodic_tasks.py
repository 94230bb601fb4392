"""The periodic chores of a worker: cron, rescue, relay, pruning, retries by command, health.

Each chore is a supervised task with an interval and a time limit. A chore that hangs, for example on a half-open
connection, does not delay the others.
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

logger = logging.getLogger("longhaul.maintenance")

_AWAY_SECONDS = 1.0
_CANCEL_SECONDS = 5.0


@dataclass(frozen=True)
class Chore:
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


async def _run_within(chore: Chore) -> None:
    """Run a chore once, within its limit.

    It runs in a task of its own, because it may wait for something that cannot be cancelled, for example the end of a
    transaction on a connection that does not answer. Such a task keeps running in the background, and the chore is
    started again.

    Raises:
        TimeoutError: the chore took longer than its limit.
    """
    task = asyncio.ensure_future(chore.run())
    try:
        await asyncio.wait({task}, timeout=chore.limit_seconds)
        if task.done():
            await task
            return
    except asyncio.CancelledError:
        task.cancel()
        raise
    remaining = await end_tasks([task], seconds=_CANCEL_SECONDS)
    end = "it ignores its cancellation and still runs" if remaining else "it was cancelled"
    raise TimeoutError(f"it took longer than {chore.limit_seconds:g} s: {end}; it is started again")


class Maintenance:
    """Runs the chores.

    Args:
        chores: the chores.
        state: the state of the worker.
        outage: logs outages of Redis.
    """

    def __init__(self, chores: Sequence[Chore], state: WorkerState, outage: OutageLog) -> None:
        self._chores = chores
        self._state = state
        self._outage = outage

    def tasks(self) -> list[asyncio.Task[None]]:
        """Start a task for each chore. The caller has to cancel the tasks."""
        return [
            asyncio.create_task(supervise(chore.name, partial(self._repeat, chore)), name=chore.name)
            for chore in self._chores
        ]

    async def _repeat(self, chore: Chore) -> None:
        """Run a chore periodically. If a server is unavailable, wait for it."""
        cannot = f"chore {chore.name} cannot run"
        failing = False
        while True:
            if chore.while_draining or not self._state.is_draining:
                try:
                    await _run_within(chore)
                    self._outage.answered(cannot)
                    failing = False
                except RedisError as error:
                    self._outage.failed(cannot, error)
                    await asyncio.sleep(_AWAY_SECONDS)
                except (SQLAlchemyError, OSError, TimeoutError) as error:
                    if not failing:
                        logger.warning("chore failed chore=%s error=%s", chore.name, format_error(error))
                    failing = True
                    await asyncio.sleep(_AWAY_SECONDS)
            await asyncio.sleep(chore.interval_seconds)
