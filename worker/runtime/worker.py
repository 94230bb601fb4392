"""The worker process: arq's Worker, with leases that are short, drains that cost nothing, and a claim in one script."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import signal
import socket
from collections.abc import Sequence
from functools import partial
from signal import Signals
from typing import Any

from arq.connections import ArqRedis
from arq.worker import Function, func
from arq.worker import Worker as ArqWorker
from redis.asyncio import Redis
from redis.exceptions import RedisError

from worker.attempt.offload import JobPools
from worker.cancellation import cancel_and_wait
from worker.db.engine import Database
from worker.db.migrate import check_migrated
from worker.job.middleware import Middleware, run_hooks
from worker.job.propagation import current_job
from worker.job.registry import Registry
from worker.ledger import Ledger
from worker.queue import keys
from worker.queue.connection import DedicatedConnection, connection_pool
from worker.queue.invalidations import InvalidationListener
from worker.queue.outage_log import OutageLog, unavailable
from worker.queue.store import Claim, QueueStore
from worker.runtime.ack_batcher import AckBatcher
from worker.runtime.executor import Executor
from worker.runtime.leases import Leases
from worker.runtime.limiter import Limiter
from worker.runtime.log_sampling import SampledLogger
from worker.runtime.maintenance import Maintenance
from worker.runtime.observer import NullObserver, Observer
from worker.runtime.operator_state import KEYS as ORDER_KEYS
from worker.runtime.operator_state import OperatorState
from worker.runtime.poll_timer import PollTimer
from worker.runtime.pruner import Pruner
from worker.runtime.queue_weights import QueueWeights
from worker.runtime.rescuer import Rescuer
from worker.runtime.scheduler import Scheduler
from worker.runtime.services import WorkerServices
from worker.settings import Settings

logger = logging.getLogger("longhaul")

_AWAY_SECONDS = 1.0
_ASKING = "the queue cannot be asked"
_TICK_SECONDS = 0.1
#: What a cancelled job has at least, to roll back and go back to the queue.
_LEAST_SECONDS = 5.0


def connect_redis(settings: Settings) -> ArqRedis:
    """Return a connection pool to Redis; nothing is sent yet."""
    pool = connection_pool(settings)
    return ArqRedis(
        pool,
        job_serializer=lambda values: json.dumps(values, default=str).encode(),
        job_deserializer=json.loads,
        default_queue_name=settings.worker.queue,
    )


async def check_redis(redis: Redis, settings: Settings) -> None:
    """Raise `ServerUnavailable` with one clear line unless Redis answers."""
    try:
        await redis.ping()
    except (RedisError, OSError) as error:
        raise unavailable(settings, error, "start Redis or Valkey there, or set REDIS_URL") from error


class QueueWorker(ArqWorker):
    """Runs jobs until SIGTERM.

    Args:
        settings: of this process.
        registry: the jobs that it knows.
        observer: hears what happens; nobody by default.
        burst: end when the queue has nothing more that is due.
        redis: connection to use; one from the settings by default.
        outage: says that Redis is away; to be shared with the observer.
        middleware: around each try of a `@job`, the first outermost.
        others: functions that are no `@job`, for a subclass whose runners know how to run them.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        *,
        observer: Observer | None = None,
        burst: bool = False,
        redis: ArqRedis | None = None,
        outage: OutageLog | None = None,
        others: Sequence[Function] = (),
        middleware: Sequence[Middleware] = (),
    ) -> None:
        super().__init__(
            functions=[*others, *(func(job.__call__, name=name) for name, job in registry.items())],  # type: ignore[arg-type]
            queue_name=settings.worker.queue,
            redis_pool=redis or connect_redis(settings),
            burst=burst,
            handle_signals=False,
            max_jobs=settings.worker.max_jobs,
            max_tries=settings.worker.max_attempts,
            poll_delay=settings.worker.poll_interval_seconds,
            health_check_interval=10,
        )
        self.settings = settings
        self.name = worker_name(settings)
        # Two processes can have one name, e.g. in containers of one host name: what owns a lease is this process.
        self.owner = f"{self.name}:{secrets.token_hex(4)}"
        self.database = Database(settings, self.name, job_name=current_job.get)
        self._lane = DedicatedConnection(settings)
        store = QueueStore(self.pool, self.owner, settings.worker.lease_seconds, self._lane)
        store.queue_limits = settings.worker.queue_limits
        ledger = Ledger(self.database, self.name)
        self._outage = outage or OutageLog()
        self._watch = InvalidationListener(settings, self._changed, self._outage)
        self._poll_timer = PollTimer(self._watch, self._served, settings.worker.poll_interval_seconds)
        self._ack_batcher = AckBatcher(store, self._poll_timer.wake)
        self.services = WorkerServices(
            settings=settings,
            registry=registry,
            database=self.database,
            ledger=ledger,
            store=store,
            orders=OperatorState(self.pool, self._watch, self._outage),
            observer=observer or NullObserver(),
            name=self.name,
            pools=JobPools(max_threads=settings.worker.max_threads, max_processes=settings.worker.max_job_processes),
            turns=self._ack_batcher,
            limiter=Limiter(self.pool),
            lines=SampledLogger(logging.getLogger("longhaul.jobs")),
            outage=self._outage,
            run_hooks=run_hooks(middleware),
        )
        self.maintenance = self.make_maintenance(registry)
        self._leases = Leases(settings, self.owner, on_lost=self._lost, on_gone=self._gone, outage=self._outage)
        self.services.stop_renewing = self._leases.remove
        self._runners: dict[str, Executor] = {}
        #: What was given up and has not ended: jobs that take no slot, and whose runs are not theirs any more.
        self._abandoned_tasks: set[asyncio.Task[None]] = set()
        self._restoring: set[asyncio.Task[None]] = set()
        self._order = QueueWeights(settings.worker.queues or {settings.worker.queue: 1}, settings.worker.queue_order)
        #: The loop's time before which nothing is claimed: who has what runs renews it first.
        self._claims_at = 0.0

    def make_maintenance(self, registry: Registry) -> Maintenance:
        """Return what is done beside the jobs."""
        services, rules = self.services, self.settings.worker
        return Maintenance(
            services,
            cron=Scheduler(registry, services.ledger, services.store, rules),
            rescue=Rescuer(services.ledger, services.store, self.settings),
            prune=Pruner(services.store, services.ledger, rules),
            record_health=self.record_health,
        )

    # --- its life

    async def main(self) -> None:
        """Run until drained (or, in a burst, until nothing is due).

        Raises:
            ServerUnavailable: PostgreSQL or Redis does not answer at the start.
            DatabaseNotMigrated: `worker migrate` has not been run.
        """
        await check_redis(self.pool, self.settings)
        await self.check_database()
        await self.maintenance.cron.start()
        await self._watch.start()
        await self.services.orders.refresh(now=True)
        self._leases.start()
        logger.info("worker %s: %d jobs known: %s", self.name, len(self.functions), ", ".join(self.functions))
        keepers = (self.maintenance.run(), self._keep_orders(), self._keep_time())
        beside = [asyncio.create_task(keeper) for keeper in keepers]
        try:
            await self._work()
        finally:
            for task in beside:
                await cancel_and_wait(task)
            await self._leases.stop()
            await self._watch.stop()
            await self._lane.close()
            await asyncio.to_thread(self.services.pools.close)
            await self._forget_drain()
            self.services.lines.tell()
            logger.info("worker %s: stopped after %d jobs", self.name, self.jobs_complete)

    async def check_database(self) -> None:
        """Find out whether PostgreSQL answers, and has the ledger."""
        await self.database.check()
        await check_migrated(self.database)
        warning = self.settings.pool_warning()
        if warning:
            logger.warning(warning)

    async def close(self) -> None:
        """Close what the worker has open."""
        await self.database.close()
        if self._pool is not None:
            try:
                await self._pool.delete(self.health_check_key)
            except RedisError:
                logger.debug("the health check key stays until it expires")
            await self._pool.aclose(close_connection_pool=True)
            self._pool = None

    async def _work(self) -> None:
        draining: asyncio.Task[None] | None = None
        failures, away_since = 0, 0.0
        while draining is None or not draining.done() or self._ack_batcher.waiting:
            if self.services.draining and draining is None:
                draining = asyncio.create_task(self._drain())
                draining.add_done_callback(lambda _: self._poll_timer.wake())
            slots = 0 if failures else self.free_slots()
            if not failures and not self._ack_batcher.waiting and not (slots and self._poll_timer.may_be_due):
                if self.burst and not self._runners and await self.is_over():
                    return
                await self._poll_timer.wait(slots)
                continue
            self._poll_timer.may_be_due = self._poll_timer.may_be_due and not slots
            try:
                turned = await self._ack_batcher.take(slots, self._shares(slots))
            except RedisError as error:
                self._outage.failed(_ASKING, error)
                away_since = away_since if failures else self.loop.time()
                failures += 1
                self._poll_timer.may_be_due = True
                if self.services.is_shutdown_forced:
                    self._ack_batcher.give_up(error)
                # Not a pause that something ends: whatever happens meanwhile, Redis is not asked more often.
                await asyncio.sleep(min(_AWAY_SECONDS, 0.1 * 2 ** min(failures, 10)))
                continue
            if failures:
                failures = 0
                await self._come_back(self.loop.time() - away_since)
            self._poll_timer.turned(len(turned.claims))
            if turned.claims and turned.ordered:
                await self.services.orders.refresh(now=True)
            for claim in turned.claims:
                self._start(claim)
            if slots and len(turned.claims) >= slots:
                self._poll_timer.may_be_due = True
        await draining

    async def _come_back(self, seconds: float) -> None:
        """Go on after a time without Redis, in which leases may have run out whose workers live: they come first."""
        self._outage.answered(_ASKING)
        self._leases.renew_now()
        await self._watch.reopen()
        if seconds > self.settings.worker.lease_seconds / 3:
            patience = self.settings.worker.lease_seconds / 2
            self._claims_at = self.loop.time() + patience
            self.loop.call_later(patience, self._poll_timer.wake)

    async def is_over(self) -> bool:
        """Tell whether a burst with no job at work has come to its end."""
        return not self._poll_timer.may_be_due

    def free_slots(self) -> int:
        """Return how many jobs may be claimed; those whose end is about to be told have left their slots."""
        if self.services.draining or not self._served() or self.loop.time() < self._claims_at:
            return 0
        return max(0, self.max_jobs - len(self._runners) + self._ack_batcher.waiting)

    def _shares(self, slots: int) -> list[tuple[str, int]]:
        shares = self._order.shares(slots)
        if not self.services.orders.paused:
            return shares
        served = self._served()
        return [(queue, most) for queue, most in shares if queue in served]

    def _served(self) -> list[str]:
        """Return the queues that are not paused."""
        if not self.services.orders.paused:
            return self._order.queues
        return [queue for queue in self._order.queues if not self.services.orders.holds(queue)]

    def _changed(self, written: frozenset[str] | None) -> None:
        """Hear of keys that were written."""
        if written is None or not ORDER_KEYS.isdisjoint(written):
            self.services.orders.changed()
        if written is None or not written.isdisjoint(self._order.queues):
            self._poll_timer.queues_changed()
        self._poll_timer.wake()

    def runner_of(self, claim: Claim) -> Executor:
        """Return what runs a job."""
        return Executor(self.services, claim)

    def _start(self, claim: Claim) -> None:
        run_id = claim.run_id
        if claim.expired:
            if self._leases.holds(run_id):
                logger.warning("job %s: its lease had run out, and nobody had taken it; it goes on here", run_id)
                return
            logger.warning("job %s: taken over: its lease had run out; try %d", run_id, claim.tries)
        runner = self.runner_of(claim)
        self._runners[run_id] = runner
        self._leases.add(run_id, claim.queue)
        task = self.loop.create_task(runner.run())
        self.tasks[run_id] = task
        task.add_done_callback(partial(self._ended, runner))

    def give_up(self, run_id: str) -> None:
        """Wait for a job's own code no more: its run ends, or is tried again, without it."""
        left, runner = self.tasks[run_id], self._runners[run_id]
        self._abandoned_tasks.add(left)
        left.add_done_callback(self._abandoned_tasks.discard)
        ending = self.loop.create_task(runner.give_up())
        self.tasks[run_id] = ending
        ending.add_done_callback(partial(self._ended, runner))

    @property
    def abandoned_tasks(self) -> int:
        """Number of jobs that were given up, and still go on."""
        return len(self._abandoned_tasks)

    def _ended(self, runner: Executor, task: asyncio.Task[Any]) -> None:
        run_id = runner.claim.run_id
        if task in self._abandoned_tasks:
            return  # it was given up before, and the run is another task's
        if self._runners.get(run_id) is runner:  # else it went back to the queue, and has been claimed again
            self._leases.remove(run_id)
            del self._runners[run_id]
            del self.tasks[run_id]
        self.jobs_complete += 1
        self._poll_timer.may_be_due = self._poll_timer.may_be_due or self.burst
        self._poll_timer.wake()
        if not task.cancelled() and task.exception() is not None:
            logger.error("job %s: its runner failed: left to its lease", run_id, exc_info=task.exception())

    # --- beside the jobs

    async def _keep_orders(self) -> None:
        """Orders for jobs outside of a loop, and for this worker. Redis may take its time: the clock does not wait."""
        served = self._order.queues
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            await self.services.orders.refresh()
            self._obey()
            if self._served() != served:
                served = self._served()
                self._poll_timer.may_be_due = True
                self._poll_timer.queues_changed()
                self._poll_timer.wake()

    async def _keep_time(self) -> None:
        """Timeouts and stalls: one clock for all jobs."""
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            now = self.loop.time()
            for run_id, runner in list(self._runners.items()):
                runner.keep_time(now)
                if runner.is_overdue(now):
                    self.give_up(run_id)

    def _obey(self) -> None:
        if self.name in self.services.orders.drained and not self.services.draining:
            self.drain(why="ordered (worker:drain)")
        for run_id, runner in self._runners.items():
            if run_id in self.services.orders.cancelled and runner.between_batches:
                runner.interrupt("cancel")

    def _lost(self, run_id: str) -> None:
        runner = self._runners.get(run_id)
        if runner is not None:
            runner.interrupt("lost")

    def _gone(self, run_id: str) -> None:
        runner = self._runners.get(run_id)
        if runner is None or not self._leases.holds(run_id):
            return

        async def restore() -> None:
            try:
                if await self.services.store.restore(runner.claim):
                    logger.warning("job %s: Redis had lost it; put back, it goes on here", run_id)
                else:
                    self._lost(run_id)
            except RedisError as error:
                logger.debug("job %s: cannot be put back: %s: the next renewal tries it again", run_id, error)

        task = self.loop.create_task(restore())
        self._restoring.add(task)
        task.add_done_callback(self._restoring.discard)

    # --- the end

    def drain(self, signum: int = signal.SIGTERM, *, why: str | None = None) -> None:
        """Stop: the first time at the next boundaries, the second time at once."""
        name = why or Signals(signum).name
        if not self.services.draining:
            logger.info("%s: draining %d jobs; again to hasten", name, len(self._runners))
            self.services.draining = True
        else:
            logger.warning("%s again: cancelling %d jobs", name, len(self._runners))
            self.services.is_shutdown_forced = True
            for runner in list(self._runners.values()):
                runner.interrupt("drain")
        self._poll_timer.wake()

    async def _forget_drain(self) -> None:
        """Take the order to drain back: it is done, and not for the next worker of this name."""
        if self.name in self.services.orders.drained:
            try:
                await self.pool.srem(keys.DRAINED, self.name)  # type: ignore[misc]
            except RedisError as error:
                logger.warning("worker:drain still has %s: %s", self.name, error)

    async def _drain(self) -> None:
        deadline = self.loop.time() + self.settings.worker.drain_timeout_seconds
        while self.tasks and self.loop.time() < deadline and not self.services.is_shutdown_forced:
            await self._wait_for_jobs(min(0.2, deadline - self.loop.time()))
        if self.tasks:
            logger.warning("drain: %d jobs are cancelled after worker.drain_timeout_seconds", len(self.tasks))
            deadline = self.loop.time() + max(self.settings.worker.drain_timeout_seconds, _LEAST_SECONDS)
            while self.tasks and self.loop.time() < deadline:
                for runner in list(self._runners.values()):
                    runner.interrupt("drain")
                await self._wait_for_jobs(1.0)
        for run_id, runner in list(self._runners.items()):
            if runner.runs_code:
                self.give_up(run_id)
        if self.tasks:
            await self._wait_for_jobs(_LEAST_SECONDS)
        for task in list(self.tasks.values()):  # e.g. Redis does not answer: their leases run out by themselves
            await cancel_and_wait(task)

    async def _wait_for_jobs(self, seconds: float) -> None:
        """Wait until those that run now have ended, given up or not, or for the time."""
        _, late = await asyncio.wait(set(self.tasks.values()), timeout=max(0.0, seconds))
        if not late:
            await asyncio.sleep(0)  # what is called when they have ended


def worker_name(settings: Settings) -> str:
    """Return the name of this worker: that of the settings, or host and process id."""
    return settings.worker.name or f"{socket.gethostname()[-30:]}-{os.getpid()}"
