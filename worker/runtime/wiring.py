"""Builds a worker from settings: the one module that connects all parts of the runtime."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from worker.attempt.offload import JobPools
from worker.db.engine import Database
from worker.db.migrate import check_migrated
from worker.job.argument_texts import stands_for
from worker.job.middleware import Middleware, RunHook, run_hooks
from worker.job.propagation import current_job
from worker.job.registry import Registry
from worker.ledger import Ledger
from worker.ledger.frozen_sessions import FrozenSessions
from worker.queue import keys
from worker.queue.commands import retry_ordered
from worker.queue.connection import DedicatedConnection, connection_pool
from worker.queue.invalidations import InvalidationListener
from worker.queue.outage_log import OutageLog, unavailable
from worker.queue.store import QueueStore
from worker.runtime.admission import Admission
from worker.runtime.completer import Completer
from worker.runtime.executor import Executor
from worker.runtime.fetcher import Fetcher
from worker.runtime.health import Counters, HealthRecorder
from worker.runtime.job_completer import ResultEncoder, encode_execution_result
from worker.runtime.leases import Leases
from worker.runtime.limiter import Limiter
from worker.runtime.log_sampling import SampledLogger
from worker.runtime.observer import Observer
from worker.runtime.operator_state import OperatorState
from worker.runtime.order_audit import OrderAudit
from worker.runtime.periodic_tasks import PeriodicTask, PeriodicTasks
from worker.runtime.pruner import Pruner
from worker.runtime.relay import Relay
from worker.runtime.rescuer import Rescuer
from worker.runtime.scheduler import Scheduler
from worker.runtime.server_retry import ServerRetry, WorkerState
from worker.runtime.waiting_runs import WaitingRuns
from worker.runtime.worker import Worker
from worker.settings import Settings

logger = logging.getLogger("longhaul.worker")


def worker_name(settings: Settings) -> str:
    """Return the name of this worker: `worker.name` of the settings, or host and process id."""
    return settings.worker.name or f"{socket.gethostname()[-30:]}-{os.getpid()}"


def connect_redis(settings: Settings) -> Redis:
    """Return a client of Redis. Send nothing."""
    return Redis(connection_pool=connection_pool(settings))


async def check_redis(redis: Redis, settings: Settings) -> None:
    """Check that Redis answers.

    Raises:
        ServerUnavailable: Redis does not answer.
    """
    try:
        await redis.exists(keys.WORKERS, keys.EVENTS)  # two slots: a node of a cluster rejects plain names
    except (RedisError, OSError) as error:
        raise unavailable(settings, error, "start Redis or Valkey there, or set REDIS_URL") from error


@dataclass(frozen=True)
class Parts:
    """The parts of a worker of any kind. Each part receives only the other parts that it needs."""

    settings: Settings
    registry: Registry
    state: WorkerState
    redis: Redis
    database: Database
    ledger: Ledger
    store: QueueStore
    outage: OutageLog
    observer: Observer
    listener: InvalidationListener
    operator_state: OperatorState
    leases: Leases
    limiter: Limiter
    fetcher: Fetcher
    servers: ServerRetry
    log: SampledLogger
    counters: Counters
    pools: JobPools

    def build_executor(self, hooks: Sequence[RunHook] = ()) -> Executor:
        """Return the executor of `@job` functions. Each attempt runs within the hooks, outermost first."""
        return Executor(
            settings=self.settings,
            admission=Admission(
                rules=self.settings.worker,
                registry=self.registry,
                ledger=self.ledger,
                store=self.store,
                servers=self.servers,
            ),
            database=self.database,
            ledger=self.ledger,
            store=self.store,
            limiter=self.limiter,
            leases=self.leases,
            operator_state=self.operator_state,
            observer=self.observer,
            log=self.log,
            servers=self.servers,
            state=self.state,
            pools=self.pools,
            waiting_runs=WaitingRuns(self.redis, self.fetcher, self.state, self.settings.worker.queue_limits),
            run_hooks=hooks,
        )

    def build_completer(self, encode: ResultEncoder = encode_execution_result) -> Completer:
        """Return the completer."""
        return Completer(
            rules=self.settings.worker,
            registry=self.registry,
            ledger=self.ledger,
            store=self.store,
            acknowledge=self.fetcher.acks.acknowledge,
            limiter=self.limiter,
            leases=self.leases,
            operator_state=self.operator_state,
            observer=self.observer,
            log=self.log,
            servers=self.servers,
            encode=encode,
        )

    def build_ledger_tasks(self) -> list[PeriodicTask]:
        """Return the periodic tasks of a worker with a ledger."""
        rules, rescuer = self.settings.worker, Rescuer(self.ledger, self.store, self.settings)
        pruner = Pruner(self.store, self.ledger, rules)
        audit = OrderAudit(self.redis, self.ledger, self.operator_state.changes)

        async def retry_runs() -> None:
            for run_id in self.operator_state.retried:  # the first worker to retry it wins
                await retry_ordered(self.redis, self.ledger, run_id)

        tasks = [
            PeriodicTask("rescue", rescuer.run, interval_seconds=rules.rescue_interval_seconds),
            PeriodicTask("prune", pruner.look),
            PeriodicTask("retry", retry_runs),
            PeriodicTask("orders", audit.look, interval_seconds=1.0),
        ]
        if limit := self.settings.database.idle_in_transaction_timeout_seconds:
            sessions = FrozenSessions(self.database, limit)
            interval = min(rules.rescue_interval_seconds, limit / 2)
            tasks.append(PeriodicTask("frozen sessions", sessions.look, interval_seconds=interval))
        return tasks

    def build_worker(self, *, scheduler: Scheduler, tasks: Sequence[PeriodicTask], **options: Any) -> Worker:
        """Return the worker.

        Args:
            scheduler: the scheduler of cron jobs.
            tasks: the periodic tasks.
            options: further arguments of `Worker`.
        """
        jobs, queues = list(self.registry), self.fetcher.queues
        relay = None
        if self.settings.worker.relay and self.registry:
            relay = Relay(self.settings, self.redis, self.ledger, self.store.problems, self.state.name, self.registry)
            tasks = [*tasks, PeriodicTask("relay", relay.run, interval_seconds=0.0, while_draining=True)]
        self.operator_state.set_names([*jobs, *queues], [keys.awaited(job, queue) for queue in queues for job in jobs])
        known = list(self.registry.values())
        texts = {one.name: partial(stands_for, one.codec) for one in known}
        self.operator_state.know_arguments({one.name: list(one.signature.parameters) for one in known}, texts)
        return Worker(
            settings=self.settings,
            state=self.state,
            redis=self.redis,
            database=self.database,
            store=self.store,
            listener=self.listener,
            operator_state=self.operator_state,
            leases=self.leases,
            fetcher=self.fetcher,
            observer=self.observer,
            periodic_tasks=PeriodicTasks(tasks, self.state, self.outage),
            scheduler=scheduler,
            counters=self.counters,
            log=self.log,
            pools=self.pools,
            relay=relay,
            job_names=jobs,
            **options,
        )


def build_parts(
    settings: Settings,
    registry: Registry,
    *,
    observer: Observer,
    redis: Redis,
    outage: OutageLog,
    keep_expiry: bool = False,
    obeys_aborts: bool = True,
) -> Parts:
    """Build the parts of a worker. Connect nothing.

    Args:
        settings: the settings of the process.
        registry: the jobs of the worker.
        observer: receives the worker's events.
        redis: the connection of the worker.
        outage: logs outages of Redis; shared with the observer.
        keep_expiry: whether a payload keeps its expiry when it is claimed: arq's rule.
        obeys_aborts: whether stock arq clients may abort runs.
    """
    rules, name = settings.worker, worker_name(settings)
    # Two processes can have the same name, e.g. in containers with one host name: make the lease owner unique.
    owner = f"{name}:{secrets.token_hex(4)}"
    state = WorkerState(name)
    database = Database(settings, name, job_name=current_job.get)
    store = QueueStore(
        redis,
        owner,
        rules.lease_seconds,
        DedicatedConnection(settings),
        queue_limits=rules.queue_limits,
        keep_expiry=keep_expiry,
    )
    listener = InvalidationListener(settings, outage)
    operator_state = OperatorState(redis, listener, outage, obeys_aborts=obeys_aborts)
    leases = Leases(settings, owner, outage)
    fetcher = Fetcher(
        rules, store=store, listener=listener, operator_state=operator_state, leases=leases, outage=outage, state=state
    )
    return Parts(
        settings=settings,
        registry=registry,
        state=state,
        redis=redis,
        database=database,
        ledger=Ledger(database, name, registry.code_version),
        store=store,
        outage=outage,
        observer=observer,
        listener=listener,
        operator_state=operator_state,
        leases=leases,
        limiter=Limiter(redis, owner),
        fetcher=fetcher,
        servers=ServerRetry(state, outage),
        log=SampledLogger(logging.getLogger("longhaul.jobs")),
        counters=Counters(),
        pools=JobPools(max_threads=rules.max_threads, max_processes=rules.max_job_processes),
    )


def build_worker(
    settings: Settings,
    registry: Registry,
    *,
    observer: Observer | None = None,
    burst: bool = False,
    redis: Redis | None = None,
    outage: OutageLog | None = None,
    middleware: Sequence[Middleware] = (),
) -> Worker:
    """Return a worker for `@job` functions. Connect nothing.

    Args:
        settings: the settings of the process.
        registry: the jobs of the worker.
        observer: receives the worker's events; none by default.
        burst: whether to end when nothing is due.
        redis: the connection of the worker; one from the settings by default. The worker closes it.
        outage: logs outages of Redis; to be shared with the observer.
        middleware: the middleware around each attempt, the first outermost.
    """
    parts = build_parts(
        settings,
        registry,
        observer=observer or Observer(),
        redis=redis or connect_redis(settings),
        outage=outage or OutageLog(),
    )
    scheduler = Scheduler(registry, parts.ledger, parts.store, settings.worker, parts.observer)
    health = HealthRecorder(parts.redis, settings.worker.queue, parts.counters, lambda: parts.leases.count)

    async def check_servers() -> None:
        await check_redis(parts.redis, settings)
        await parts.database.check()
        await check_migrated(parts.database)
        warning = settings.pool_warning()
        if warning:
            logger.warning(warning)

    return parts.build_worker(
        scheduler=scheduler,
        tasks=[
            PeriodicTask("cron", scheduler.look),
            *parts.build_ledger_tasks(),
            PeriodicTask("health", health.record, interval_seconds=health.interval_seconds, while_draining=True),
        ],
        executor=parts.build_executor(run_hooks(middleware)),
        completer=parts.build_completer(),
        health=health,
        check_servers=check_servers,
        burst=burst,
    )
