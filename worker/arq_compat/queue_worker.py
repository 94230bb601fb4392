"""The queue of a worker with arq's arguments: our turns, leases, watch and drain, under arq's rules for a burst."""

from __future__ import annotations

from arq.connections import ArqRedis
from arq.worker import Function
from arq.worker import Worker as ArqWorker
from redis.exceptions import RedisError

from worker.arq_compat.codec import ArqCodec
from worker.arq_compat.cron import ArqCron
from worker.arq_compat.executor import ArqExecutor
from worker.job.middleware import load_middleware
from worker.job.registry import Registry
from worker.queue.outage_log import OutageLog
from worker.queue.store import Claim
from worker.runtime.executor import Executor
from worker.runtime.maintenance import Maintenance
from worker.runtime.observer import Observer
from worker.runtime.pruner import Pruner
from worker.runtime.rescuer import Rescuer
from worker.runtime.worker import QueueWorker
from worker.settings import Settings


class ArqQueueWorker(QueueWorker):
    """Works a queue off for a worker with arq's arguments, once.

    Args:
        settings: made from those arguments.
        registry: the `@job` functions among its functions; without any, PostgreSQL is not needed.
        arq: has the arguments, and counts.
        codec: reads payloads, writes results.
        observer: hears what happens.
        redis: connection of its own.
        outage: says that Redis is away.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        arq: ArqWorker,
        codec: ArqCodec,
        *,
        observer: Observer,
        redis: ArqRedis,
        outage: OutageLog,
    ) -> None:
        others = [
            one if isinstance(one, Function) else Function(name, one.coroutine, None, None, None, None)
            for name, one in arq.functions.items()
            if name not in registry
        ]
        around = load_middleware(settings.worker.middleware)
        self._arq = arq
        self._codec = codec
        super().__init__(
            settings,
            registry,
            observer=observer,
            burst=arq.burst,
            redis=redis,
            outage=outage,
            others=others,
            middleware=around,
        )
        self.tasks = arq.tasks
        self.services.store.keep_expiry = True
        self.services.orders.heeds_aborts = arq.allow_abort_jobs

    def make_maintenance(self, registry: Registry) -> Maintenance:
        """Return what is done beside the jobs: cron by arq's rules, and nothing in a ledger that nobody needs."""
        services, rules = self.services, self.settings.worker
        return Maintenance(
            services,
            cron=ArqCron(registry, services.ledger, services.store, rules, self._arq, self._codec),
            rescue=Rescuer(services.ledger, services.store, self.settings) if registry else None,
            prune=Pruner(services.store, services.ledger if registry else None, rules),
            record_health=self.record_health,
        )

    async def check_database(self) -> None:
        """Find out whether PostgreSQL answers, where there is a job that needs it."""
        if self.services.registry:
            await super().check_database()

    def runner_of(self, claim: Claim) -> Executor:
        """Return what runs a job."""
        return ArqExecutor(self.services, claim, self._arq, self._codec)

    def free_slots(self) -> int:
        """Return how many jobs may be claimed, also by the limit of a burst."""
        if not self._arq.allow_pick_jobs:
            return 0
        slots, left = super().free_slots(), self._left()
        return slots if left is None else min(slots, left)

    def _left(self) -> int | None:
        """Return how many jobs a burst may still begin; None without a limit."""
        if not self.burst or self._arq.max_burst_jobs < 0:
            return None
        return max(0, self._arq.max_burst_jobs - self._arq._jobs_started())

    async def is_over(self) -> bool:
        """Tell whether a burst is over: by arq's rule it waits for deferred jobs, too."""
        if self._left() == 0:
            return True
        if self._poll_timer.may_be_due:
            return False
        try:
            return not await self.pool.zcard(self.queue_name)
        except RedisError:
            return False

    async def record_health(self) -> None:
        """Let the worker with arq's arguments tell that it lives."""
        await self._arq.record_health()

    async def close(self) -> None:
        """Close what was open for this run; the health check key is the other worker's."""
        await self.database.close()
        if self._pool is not None:
            await self._pool.aclose(close_connection_pool=True)
            self._pool = None
