"""The chores of a worker beside its jobs: cron, rescue, relay, pruning, retries by order, health.

Each is a supervised task of its own, with an interval and a time limit: one that hangs, e.g. on a half-open connection,
holds up no other one.
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
from worker.runtime.supervision import supervise

logger = logging.getLogger("longhaul.maintenance")

_AWAY_SECONDS = 1.0


@dataclass(frozen=True)
class Chore:
    """Something that a worker does again and again.

    Attributes:
        name: for the log.
        run: does it, once.
        interval_seconds: pause between two runs.
        limit_seconds: longest time for one run.
        while_draining: whether it goes on while the worker drains.
    """

    name: str
    run: Callable[[], Awaitable[Any]]
    interval_seconds: float = 0.2
    limit_seconds: float = 60.0
    while_draining: bool = False


class Maintenance:
    """Runs the chores.

    Args:
        chores: what is to be done.
        state: of the worker.
        outage: logs that Redis is away.
    """

    def __init__(self, chores: Sequence[Chore], state: WorkerState, outage: OutageLog) -> None:
        self._chores = chores
        self._state = state
        self._outage = outage

    def tasks(self) -> list[asyncio.Task[None]]:
        """Start a task for each chore; the caller cancels them."""
        return [
            asyncio.create_task(supervise(chore.name, partial(self._repeat, chore)), name=chore.name)
            for chore in self._chores
        ]

    async def _repeat(self, chore: Chore) -> None:
        """Do a chore again and again; wait for a server that is away."""
        cannot = f"chore {chore.name} cannot go on"
        failing = False
        while True:
            if chore.while_draining or not self._state.is_draining:
                try:
                    async with asyncio.timeout(chore.limit_seconds):
                        await chore.run()
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
