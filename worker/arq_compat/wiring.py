"""Builds a worker from arq's arguments: the parts of the runtime, with arq's rules for functions, cron and bursts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from arq.worker import Worker as ArqWorker
from redis.asyncio import Redis
from redis.exceptions import RedisError

from worker.arq_compat.codec import ArqCodec
from worker.arq_compat.completer import ArqCompleter, make_encoder
from worker.arq_compat.cron import ArqCron
from worker.arq_compat.executor import ArqExecutor, ArqHooks
from worker.db.migrate import check_migrated
from worker.job.middleware import Middleware, run_hooks
from worker.job.registry import Registry
from worker.observe.wiring import Observation
from worker.queue.outage_log import OutageLog
from worker.runtime.log_sampling import SampledLogger
from worker.runtime.periodic_tasks import PeriodicTask
from worker.runtime.pruner import Pruner
from worker.runtime.wiring import Parts, build_parts, check_redis
from worker.runtime.worker import Worker
from worker.settings import Settings

if TYPE_CHECKING:  # it needs OpenTelemetry
    from worker.observe.tracing import RunTracing


class BurstRules:
    """arq's rules for the number of jobs in a burst, and for its end.

    Args:
        arq: the arq worker, with its arguments and counts.
        redis: the connection that reads deferred jobs.
    """

    def __init__(self, arq: ArqWorker, redis: Redis) -> None:
        self._arq = arq
        self._redis = redis

    def _remaining(self) -> int | None:
        """Return the number of jobs that a burst may still begin; None without a limit."""
        if not self._arq.burst or self._arq.max_burst_jobs < 0:
            return None
        return max(0, self._arq.max_burst_jobs - self._arq._jobs_started())

    def cap_slots(self, slots: int) -> int:
        """Return the number of jobs that may be claimed."""
        remaining = self._remaining()
        if not self._arq.allow_pick_jobs:
            return 0
        return slots if remaining is None else min(slots, remaining)

    async def is_over(self, may_be_due: bool) -> bool:
        """Return whether a burst is over. By arq's rule, it waits for deferred jobs, too."""
        if self._remaining() == 0:
            return True
        if may_be_due:
            return False
        try:
            return not await self._redis.zcard(self._arq.queue_name)
        except RedisError:
            return False


async def check_servers(parts: Parts, *, needs_database: bool) -> None:
    """Check that Redis answers, and PostgreSQL if there is a `@job`.

    Raises:
        ServerUnavailable: one of them does not answer.
        DatabaseNotMigrated: `worker migrate` has not been run.
    """
    await check_redis(parts.redis, parts.settings)
    if needs_database:
        await parts.database.check()
        await check_migrated(parts.database)


def make_prune_task(parts: Parts) -> PeriodicTask:
    """Return the periodic task that deletes old dead letters, without pruning the ledger."""
    return PeriodicTask("prune", Pruner(parts.store, None, parts.settings.worker).look)


def build_arq_executor(
    parts: Parts,
    arq: ArqWorker,
    codec: ArqCodec,
    *,
    tracing: RunTracing | None,
    middleware: Sequence[Middleware],
    own_keys: bool,
) -> ArqExecutor:
    """Return the executor for the jobs of an arq worker. arq's hooks run outside of all middleware but that of tracing.

    Args:
        parts: the parts of Longhaul's worker.
        arq: the arq worker, with its functions and hooks.
        codec: decodes payloads.
        tracing: traces runs; None without tracing.
        middleware: the middleware around the attempts of `@job` functions.
        own_keys: whether Longhaul's own keys (`worker:*`) may be written in addition to arq's.
    """
    hooks = ArqHooks(arq)
    traced = run_hooks([] if tracing is None else [tracing])
    return ArqExecutor(
        parts.build_executor([*traced, hooks.around_attempt, *run_hooks(middleware)]),
        hooks,
        is_known=parts.registry.__contains__,
        has_ledger=bool(parts.registry),
        arq=arq,
        codec=codec,
        store=parts.store,
        observer=parts.observer,
        spans=None if tracing is None else tracing.observer,
        log=parts.log,
        servers=parts.servers,
        keeps_dead_letters=own_keys,
    )


def _build_arq_parts(
    settings: Settings, registry: Registry, arq: ArqWorker, *, observation: Observation, redis: Redis, outage: OutageLog
) -> Parts:
    """Return the parts of Longhaul's worker. The logs of runs are kept in its ledger, too, if it needs one."""
    parts = build_parts(
        settings,
        registry,
        observer=observation.observer,
        redis=redis,
        outage=outage,
        keep_expiry=True,
        obeys_aborts=arq.allow_abort_jobs,
    )
    if observation.log is not None and registry:
        observation.log.ledger = parts.ledger
    return replace(parts, log=SampledLogger(logging.getLogger("arq.worker")))


def build_arq_worker(
    settings: Settings,
    registry: Registry,
    arq: ArqWorker,
    codec: ArqCodec,
    *,
    observation: Observation,
    middleware: Sequence[Middleware],
    redis: Redis,
    outage: OutageLog,
    own_keys: bool = True,
) -> Worker:
    """Return Longhaul's worker for the functions of an arq worker. Connect nothing.

    Args:
        settings: the settings made from its arguments.
        registry: the `@job` functions among its functions; if there are none, PostgreSQL is not needed.
        arq: the arq worker, with its functions, hooks and counts.
        codec: decodes payloads and encodes results.
        observation: receives the worker's events.
        middleware: the middleware around the attempts of `@job` functions.
        redis: the connection of Longhaul's worker, which closes it.
        outage: logs outages of Redis.
        own_keys: whether Longhaul's own keys (`worker:*`) may be written in addition to arq's.
    """
    parts = _build_arq_parts(settings, registry, arq, observation=observation, redis=redis, outage=outage)
    executor = build_arq_executor(
        parts, arq, codec, tracing=observation.tracing, middleware=middleware, own_keys=own_keys
    )
    completer = ArqCompleter(
        parts.build_completer(make_encoder(codec)),
        arq=arq,
        codec=codec,
        acknowledge=parts.fetcher.acks.acknowledge,
        observer=parts.observer,
    )
    scheduler = ArqCron(
        registry, parts.ledger, parts.store, settings.worker, arq, codec, observer=parts.observer, guards=own_keys
    )
    ledger_tasks = parts.build_ledger_tasks() if registry else [make_prune_task(parts)] if own_keys else []
    health = PeriodicTask("health", arq.record_health, while_draining=True)
    burst = BurstRules(arq, redis)
    return parts.build_worker(
        scheduler=scheduler,
        tasks=[PeriodicTask("cron", scheduler.look), *ledger_tasks, health],
        executor=executor,
        completer=completer,
        health=None,
        check_servers=partial(check_servers, parts, needs_database=bool(registry)),
        burst=arq.burst,
        cap_slots=burst.cap_slots,
        is_burst_over=burst.is_over,
        log_level=logging.DEBUG,  # arq logs its own line at the start, and none at the end
    )
