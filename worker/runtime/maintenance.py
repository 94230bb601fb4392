"""What a worker does beside its jobs, one thing after the other: cron, rescue, pruning, retries by order, health."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from worker.errors import format_error
from worker.queue.retry_command import retry_ordered
from worker.runtime.pruner import Pruner
from worker.runtime.rescuer import Rescuer
from worker.runtime.scheduler import Scheduler
from worker.runtime.services import WorkerServices

logger = logging.getLogger("longhaul")

_AWAY_SECONDS = 1.0
_ROUND_SECONDS = 0.2
_KEEPING = "maintenance cannot go on"


class Maintenance:
    """The rounds.

    Args:
        services: what the runs of the worker share.
        cron: enqueues what is due.
        rescue: puts runs of the ledger back that no queue has; None where there is no ledger.
        prune: forgets what is too old.
        record_health: tells that the worker lives.
    """

    def __init__(
        self,
        services: WorkerServices,
        *,
        cron: Scheduler,
        rescue: Rescuer | None,
        prune: Pruner,
        record_health: Callable[[], Awaitable[None]],
    ) -> None:
        self.cron = cron
        self.rescue = rescue
        self._services = services
        self._prune = prune
        self._record_health = record_health

    async def run(self) -> None:
        """Make rounds until cancelled; a server that is away is waited for."""
        failing = False
        while True:
            try:
                await self._make_round()
                self._services.outage.answered(_KEEPING)
                failing = False
            except RedisError as error:
                self._services.outage.failed(_KEEPING, error)
                await asyncio.sleep(_AWAY_SECONDS)
            except (SQLAlchemyError, OSError) as error:
                if not failing:
                    logger.warning("maintenance: %s; going on", format_error(error))
                failing = True
                await asyncio.sleep(_AWAY_SECONDS)
            await asyncio.sleep(_ROUND_SECONDS)

    async def _make_round(self) -> None:
        services = self._services
        if not services.draining:
            await self.cron.look()
            if self.rescue is not None:
                await self.rescue.look()
            await self._prune.look()
            for run_id in services.orders.retried:  # whichever worker comes first does it
                await retry_ordered(services.store.redis, services.ledger, run_id)
        await self._record_health()
