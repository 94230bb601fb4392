"""What a worker does beside its jobs, one thing after the other: cron, rescue, pruning, retries by order, health."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from worker.db.errors import one_line
from worker.queue.retry_command import retry_ordered
from worker.runtime.pruner import Prune
from worker.runtime.rescuer import Rescue
from worker.runtime.scheduler import Cron
from worker.runtime.services import House

logger = logging.getLogger("worker")

_AWAY_SECONDS = 1.0
_ROUND_SECONDS = 0.2
_KEEPING = "housekeeping cannot go on"


class Housekeeping:
    """The rounds.

    Args:
        house: what the runs of the worker share.
        cron: enqueues what is due.
        rescue: puts runs of the ledger back that no queue has; None where there is no ledger.
        prune: forgets what is too old.
        record_health: tells that the worker lives.
    """

    def __init__(
        self,
        house: House,
        *,
        cron: Cron,
        rescue: Rescue | None,
        prune: Prune,
        record_health: Callable[[], Awaitable[None]],
    ) -> None:
        self.cron = cron
        self.rescue = rescue
        self._house = house
        self._prune = prune
        self._record_health = record_health

    async def run(self) -> None:
        """Make rounds until cancelled; a server that is away is waited for."""
        failing = False
        while True:
            try:
                await self._make_round()
                self._house.outage.answered(_KEEPING)
                failing = False
            except RedisError as error:
                self._house.outage.failed(_KEEPING, error)
                await asyncio.sleep(_AWAY_SECONDS)
            except (SQLAlchemyError, OSError) as error:
                if not failing:
                    logger.warning("housekeeping: %s; going on", one_line(error))
                failing = True
                await asyncio.sleep(_AWAY_SECONDS)
            await asyncio.sleep(_ROUND_SECONDS)

    async def _make_round(self) -> None:
        house = self._house
        if not house.draining:
            await self.cron.look()
            if self.rescue is not None:
                await self.rescue.look()
            await self._prune.look()
            for run_id in house.orders.retried:  # whichever worker comes first does it
                await retry_ordered(house.store.redis, house.ledger, run_id)
        await self._record_health()
