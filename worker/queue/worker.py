"""The worker process: arq's Worker, with leases that are short, drains that cost nothing, and a claim in one script."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import secrets
import signal
import socket
from signal import Signals
from typing import Any

from arq.connections import ArqRedis
from arq.worker import Worker as ArqWorker
from arq.worker import func
from redis.asyncio import ConnectionPool, Redis
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from worker.db.engine import Database
from worker.db.failure import one_line
from worker.db.migrate import check_migrated
from worker.errors import RegistrationError, ServerUnavailable
from worker.ledger import Ledger
from worker.queue.cron import Cron
from worker.queue.hooks import Observer, Silent
from worker.queue.house import House
from worker.queue.leases import Leases
from worker.queue.orders import Orders
from worker.queue.rescue import Rescue
from worker.queue.runner import Runner
from worker.queue.store import Claim, QueueStore
from worker.registry import Registry
from worker.settings import Settings, mask_passwords
from worker.tasks import end

logger = logging.getLogger("worker")

_AWAY_SECONDS = 1.0
#: What a cancelled job has at least, to roll back and go back to the queue.
_LEAST_SECONDS = 5.0


def connect_redis(settings: Settings) -> ArqRedis:
    """Return a connection pool to Redis; nothing is sent yet."""
    pool: ConnectionPool = ConnectionPool.from_url(
        settings.redis.url,
        socket_connect_timeout=settings.redis.connect_timeout_seconds,
        socket_timeout=settings.redis.command_timeout_seconds,
    )
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
        raise ServerUnavailable(
            f"Redis at {mask_passwords(settings.redis.url)}: {str(error).rstrip('.')}: start Redis or Valkey there, or "
            f"set REDIS_URL"
        ) from error


class Worker(ArqWorker):
    """Runs jobs until SIGTERM.

    Args:
        settings: of this process.
        registry: the jobs that it knows.
        observer: hears what happens; nobody by default.
        burst: end when the queue has nothing more that is due.
        redis: connection to use; one from the settings by default.
    """

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        *,
        observer: Observer | None = None,
        burst: bool = False,
        redis: ArqRedis | None = None,
    ) -> None:
        if not registry:
            raise RegistrationError(
                f"no @job function in {', '.join(settings.worker.packages)}; name their packages in worker.packages"
            )
        super().__init__(
            functions=[func(job.function, name=name) for name, job in registry.items()],  # type: ignore[arg-type]
            queue_name=settings.worker.queue,
            redis_pool=redis or connect_redis(settings),
            burst=burst,
            handle_signals=False,
            max_jobs=settings.worker.max_jobs,
            max_tries=settings.worker.max_tries,
            poll_delay=settings.worker.poll_seconds,
            health_check_interval=10,
        )
        self.settings = settings
        self.name = worker_name(settings)
        # Two processes can have one name, e.g. in containers of one host name: what owns a lease is this process.
        self.owner = f"{self.name}:{secrets.token_hex(4)}"
        self.database = Database(settings, self.name)
        store = QueueStore(self.pool, self.owner, settings.worker.lease_seconds)
        ledger = Ledger(self.database, self.name)
        self.house = House(
            settings=settings,
            registry=registry,
            database=self.database,
            ledger=ledger,
            store=store,
            orders=Orders(self.pool),
            observer=observer or Silent(),
            name=self.name,
        )
        self._cron = Cron(registry, ledger, store, settings.worker)
        self._rescue = Rescue(ledger, store, settings)
        self._leases = Leases(settings, self.owner, on_lost=self._lost, on_gone=self._gone)
        self.house.let_go = self._leases.remove
        self._runners: dict[str, Runner] = {}
        self._restoring: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Event()

    # --- its life

    async def main(self) -> None:
        """Run until drained (or, in a burst, until nothing is due).

        Raises:
            ServerUnavailable: PostgreSQL or Redis does not answer at the start.
            DatabaseNotMigrated: `worker migrate` has not been run.
        """
        await check_redis(self.pool, self.settings)
        await self.database.check()
        await check_migrated(self.database)
        warning = self.settings.pool_warning()
        if warning:
            logger.warning(warning)
        await self._cron.start()
        self._leases.start()
        logger.info("worker %s: %d jobs known: %s", self.name, len(self.functions), ", ".join(self.functions))
        housekeeping = asyncio.create_task(self._keep_house())
        try:
            await self._work()
        finally:
            await end(housekeeping)
            await self._leases.stop()
            logger.info("worker %s: stopped after %d jobs", self.name, self.jobs_complete)

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
        failing = False
        while not self.house.draining:
            slots = self.max_jobs - len(self._runners)
            claimed: list[Claim] = []
            try:
                if slots > 0 and "*" not in self.house.orders.paused:
                    claimed = await self.house.store.claim(self.queue_name, slots)
                failing = False
            except RedisError as error:
                if not failing:
                    logger.warning("Redis does not answer: %s; going on until it does", error)
                failing = True
                await self._wait(_AWAY_SECONDS)
                continue
            for claim in claimed:
                self._start(claim)
            if len(claimed) == slots and slots > 0:
                continue
            if self.burst and not claimed and not self._runners:
                return
            await self._wait(self.poll_delay_s)
        await self._drain()

    async def _wait(self, seconds: float) -> None:
        """Wait for a job to end, a signal, or the time."""
        self._turn.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._turn.wait()
        except TimeoutError:
            pass

    def _start(self, claim: Claim) -> None:
        runner = Runner(self.house, claim)
        self._runners[claim.run_id] = runner
        self._leases.add(claim.run_id, claim.due_ms)
        task = self.loop.create_task(runner.run())
        self.tasks[claim.run_id] = task
        task.add_done_callback(lambda done: self._ended(claim.run_id, done))

    def _ended(self, run_id: str, task: asyncio.Task[Any]) -> None:
        self._leases.remove(run_id)
        self._runners.pop(run_id, None)
        self.tasks.pop(run_id, None)
        self.jobs_complete += 1
        self._turn.set()
        if not task.cancelled() and task.exception() is not None:
            logger.error("job %s: its runner failed: left to its lease", run_id, exc_info=task.exception())

    # --- beside the jobs

    async def _keep_house(self) -> None:
        """Orders for jobs outside of a loop, cron, rescue and the health check, one after the other."""
        failing = False
        while True:
            try:
                await self.house.orders.refresh()
                self._obey()
                if not self.house.draining:
                    await self._cron.look()
                    await self._rescue.look()
                await self.record_health()
                failing = False
            except (RedisError, SQLAlchemyError, OSError) as error:
                if not failing:
                    logger.warning("housekeeping: %s; going on", one_line(error))
                failing = True
                await asyncio.sleep(_AWAY_SECONDS)
            await asyncio.sleep(self.poll_delay_s)

    def _obey(self) -> None:
        for run_id, runner in self._runners.items():
            if run_id in self.house.orders.cancelled and runner.between_batches:
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
                if await self.house.store.restore(runner.claim):
                    logger.warning("job %s: Redis had lost it; put back, it goes on here", run_id)
                else:
                    self._lost(run_id)
            except RedisError as error:
                logger.warning("job %s: cannot be put back: %s", run_id, error)

        task = self.loop.create_task(restore())
        self._restoring.add(task)
        task.add_done_callback(self._restoring.discard)

    # --- the end

    def drain(self, signum: int = signal.SIGTERM) -> None:
        """Stop: the first time at the next boundaries, the second time at once."""
        name = Signals(signum).name
        if not self.house.draining:
            logger.info("%s: draining %d jobs; again to hasten", name, len(self._runners))
            self.house.draining = True
        else:
            logger.warning("%s again: cancelling %d jobs", name, len(self._runners))
            self.house.hastened = True
            for runner in list(self._runners.values()):
                runner.interrupt("drain")
        self._turn.set()

    async def _drain(self) -> None:
        running = list(self.tasks.values())
        if not running:
            return
        late = set(running)
        deadline = self.loop.time() + self.settings.worker.drain_seconds
        while late and self.loop.time() < deadline and not self.house.hastened:
            left = min(0.2, deadline - self.loop.time())
            _, late = await asyncio.wait(late, timeout=max(0.0, left))
        if late:
            logger.warning("drain: %d jobs are cancelled after worker.drain_seconds", len(late))
            deadline = self.loop.time() + max(self.settings.worker.drain_seconds, _LEAST_SECONDS)
            while late and self.loop.time() < deadline:
                for runner in list(self._runners.values()):
                    runner.interrupt("drain")
                _, late = await asyncio.wait(late, timeout=1.0)
        for task in late:  # e.g. Redis does not answer: their leases run out by themselves
            await end(task)


def worker_name(settings: Settings) -> str:
    """Return the name of this worker: that of the settings, or host and process id."""
    return settings.worker.name or f"{socket.gethostname()[-30:]}-{os.getpid()}"
