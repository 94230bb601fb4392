"""`Worker`: takes the arguments of `arq.Worker`, and runs its functions on Longhaul's queue; see docs/from-arq.md."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import datetime, timedelta, tzinfo
from signal import Signals
from typing import Any, TypedDict, Unpack

from arq.connections import ArqRedis, RedisSettings, create_pool, log_redis_info
from arq.cron import CronJob
from arq.jobs import Deserializer, Serializer
from arq.utils import import_string
from arq.worker import Function, func
from arq.worker import Worker as StockWorker
from redis.exceptions import RedisError, ResponseError

from worker.arq_compat.codec import ArqCodec
from worker.arq_compat.cron import ArqCron
from worker.arq_compat.redis_settings import make_redis_url
from worker.arq_compat.wiring import build_arq_worker
from worker.cancellation import cancel_and_wait
from worker.errors import RegistrationError, ServerUnavailable, UsageError
from worker.job.definition import Job
from worker.job.middleware import configured_middleware
from worker.job.registry import Registry
from worker.observe.metrics.endpoint import make_endpoint
from worker.observe.mirror import Mirror
from worker.observe.wiring import make_observation
from worker.queue.connection import connection_pool
from worker.queue.outage_log import OutageLog
from worker.runtime.observer import Observer
from worker.runtime.wiring import check_redis, connect_redis, worker_name
from worker.runtime.worker import Worker as QueueWorker
from worker.settings import Settings, load_with_origins

logger = logging.getLogger("arq.worker")

Seconds = int | float | timedelta
Hook = Callable[[dict[Any, Any]], Awaitable[Any]]
_A_HUNDRED_YEARS = 3.2e9


class ArqArguments(TypedDict, total=False):
    """Arguments of `arq.Worker`, as arq documents them."""

    queue_name: str | None
    cron_jobs: Sequence[CronJob] | None
    redis_settings: RedisSettings | None
    redis_pool: ArqRedis | None
    burst: bool
    on_startup: Hook | None
    on_shutdown: Hook | None
    on_job_start: Hook | None
    on_job_end: Hook | None
    after_job_end: Hook | None
    handle_signals: bool
    job_completion_wait: int
    max_jobs: int
    job_timeout: Seconds
    keep_result: Seconds
    keep_result_forever: bool
    poll_delay: Seconds
    queue_read_limit: int | None
    max_tries: int
    health_check_interval: Seconds
    health_check_key: str | None
    ctx: dict[Any, Any] | None
    retry_jobs: bool
    allow_abort_jobs: bool
    max_burst_jobs: int
    job_serializer: Serializer | None
    job_deserializer: Deserializer | None
    expires_extra_ms: int
    timezone: tzinfo | None
    log_results: bool


class Worker(StockWorker):
    """Runs arq's functions and `@job` functions.

    Args:
        functions: coroutine functions of arq's form, results of `arq.worker.func`, dotted names, or `@job` functions.
        settings: the settings that are not arguments of arq: leases, Redis's timeouts, PostgreSQL. If there is a
            `@job`, the default is `settings.toml` and the environment. Otherwise PostgreSQL is not needed, and the
            default is the variables `LONGHAUL_*` and `REDIS_URL` only.
        accept_pickle: whether to read pickles of plain types, as arq's clients write them; no code of a pickle runs.
            False rejects them. If `job_deserializer` is given, it reads all payloads, and the default is False.
        mirror: whether to publish runs and the worker under `worker:*` in Redis. If False, only arq's keys are written.
        arguments: any argument of `arq.Worker`.

    Attributes:
        report_to: path of the socket of a supervisor that serves the metrics; None to serve them at `metrics.port`.

    Raises:
        RegistrationError: the address of Redis is not known, or a `@job` has no database.
    """

    def __init__(
        self,
        functions: Sequence[Function | Job[..., Any] | Callable[..., Awaitable[Any]] | str] = (),
        *,
        settings: Settings | None = None,
        accept_pickle: bool | None = None,
        mirror: bool = True,
        **arguments: Unpack[ArqArguments],
    ) -> None:
        jobs, others = _sorted(functions)
        self._registry = Registry(jobs)
        for job in jobs:
            job.codec.check()
        self.settings = _settings(settings, arguments, needs_database=bool(jobs))
        if arguments.get("redis_pool") is None and arguments.get("redis_settings") is None:
            self._url = self.settings.redis.url
        else:
            self._url = make_redis_url(arguments.get("redis_settings"), arguments.get("redis_pool"))
            if self.settings.redis.prefix:
                raise RegistrationError(
                    f"redis_settings and redis_pool use plain names of keys, and the settings have the prefix "
                    f"{self.settings.redis.prefix}: leave them out, and set redis.url"
                )
        self.report_to: str | None = None
        self._asked_to_stop: Signals | None = None
        self._queue: QueueWorker | None = None
        self._waiting: asyncio.Task[None] | None = None
        named = [func(job.__call__, name=job.name) for job in jobs]  # type: ignore[arg-type]
        super().__init__(functions=[*others, *named], **arguments)  # type: ignore[arg-type]
        self._given_settings = arguments.get("redis_settings")
        self._accepts_pickle = self.job_deserializer is None if accept_pickle is None else accept_pickle
        self._mirrors = mirror
        self._warns = accept_pickle is None and self._accepts_pickle
        self._idle = asyncio.Event()
        self._idle.set()

    async def main(self) -> None:
        """Run until a signal, or, in a burst, until the queue is empty. The connection stays open until `close`.

        Raises:
            ServerUnavailable: Redis does not answer, or PostgreSQL does not answer and there is a `@job`.
            DatabaseNotMigrated: there is a `@job`, and `worker migrate` has not been run.
        """
        self._idle.clear()
        try:
            if self._pool is None:
                self._pool = await self._connect()
            if self._warns:
                logger.warning(
                    "pickles from Redis are read, but only of plain types: for your own classes, pass "
                    "job_deserializer=pickle.loads; to silence this warning, pass accept_pickle=True"
                )
            logger.info("Starting worker for %d functions: %s", len(self.functions), ", ".join(self.functions))
            # The user of the connection may have no right to INFO, and in a namespace there is no DBSIZE.
            with suppress(ResponseError, UsageError):
                await log_redis_info(self.pool, logger.info)
            self.ctx["redis"] = self.pool
            if self.on_startup:
                await self.on_startup(self.ctx)
            await self.record_health()  # before the first job, as arq does
            await self._work()
        finally:
            self._queue = None
            self._idle.set()

    async def _connect(self) -> ArqRedis:
        if self._given_settings is not None:
            try:
                return await create_pool(
                    self._given_settings,
                    job_serializer=self.job_serializer,
                    job_deserializer=self.job_deserializer,
                    default_queue_name=self.queue_name,
                    expires_extra_ms=self.expires_extra_ms,
                )
            except (RedisError, OSError) as error:
                shown = f"{self._given_settings.host}:{self._given_settings.port}"
                raise ServerUnavailable(f"Redis at {shown}: {str(error).rstrip('.')}: see redis_settings") from error
        pool = ArqRedis(
            connection_pool(self._settings_in_force()),
            job_serializer=self.job_serializer,
            job_deserializer=self.job_deserializer,
            default_queue_name=self.queue_name,
            expires_extra_ms=self.expires_extra_ms,
        )
        await check_redis(pool, self.settings)
        return pool

    async def _work(self) -> None:
        settings = self._settings_in_force()
        redis = connect_redis(settings)
        outage = OutageLog()
        name = worker_name(settings)
        endpoint = make_endpoint(settings, self.functions, self.report_to, has_ledger=bool(self._registry))
        middleware = configured_middleware(settings)
        observation = make_observation(
            settings,
            name,
            self.functions,
            redis=redis,
            outage=outage,
            shown=Mirror(redis, settings, name, outage) if self._mirrors else Observer(),
            keeps_log=self._mirrors,
            middleware=middleware,
            counted=None if endpoint is None else endpoint.observer,
        )
        codec = ArqCodec(
            self.job_serializer,
            self.job_deserializer,
            accept_pickle=self._accepts_pickle,
            max_bytes=settings.worker.max_payload_bytes,
        )
        queue = build_arq_worker(
            settings,
            self._registry,
            self,
            codec,
            observation=observation,
            middleware=middleware,
            redis=redis,
            outage=outage,
            own_keys=self._mirrors,
        )
        self._queue = queue
        self.tasks = queue.tasks
        if self._asked_to_stop is not None:
            queue.drain(self._asked_to_stop)
        try:
            async with nullcontext() if endpoint is None else endpoint.serving(queue):
                working = asyncio.create_task(queue.run())
                try:
                    await asyncio.shield(working)
                except asyncio.CancelledError:
                    queue.drain()  # its jobs return to the queue before this method ends
                    await working
                    raise
        finally:
            await queue.close()

    def _settings_in_force(self) -> Settings:
        own = self.settings
        timeout = float("inf") if self.job_timeout_s is None else self.job_timeout_s
        rules = own.worker.model_copy(
            update={
                "queue": self.queue_name,
                "max_jobs": self.max_jobs,
                "max_attempts": self.max_tries,
                "job_timeout_seconds": timeout,
                "result_ttl_seconds": _A_HUNDRED_YEARS if self.keep_result_forever else self.keep_result_s,
                "drain_timeout_seconds": float(self._job_completion_wait),
                "poll_interval_seconds": min(max(self.poll_delay_s, 0.01), 5.0),
                # A job that blocks the event loop keeps its lease for as long as in a stock worker.
                "loop_block_tolerance_seconds": max(
                    own.worker.loop_block_tolerance_seconds, self.in_progress_timeout_s
                ),
            }
        )
        redis = own.redis.model_copy(update={"url": self._url})
        return own.model_copy(update={"worker": rules, "redis": redis})

    # --- the end

    def handle_sig(self, signum: Signals) -> None:
        """Stop. Running jobs get `job_completion_wait` seconds and are then cancelled; a second call cancels now."""
        known = Signals(signum)
        self._log_shutdown(known.name, len(self.tasks), "ongoing to cancel")
        self._ask_to_stop(known)
        if self.on_stop:
            self.on_stop(known)

    def handle_sig_wait_for_completion(self, signum: Signals) -> None:
        """Stop like `handle_sig`. `on_stop` is called when the jobs have ended, or after `job_completion_wait`."""
        known = Signals(signum)
        logger.info("Setting allow_pick_jobs to `False`")
        self.allow_pick_jobs = False
        self._log_shutdown(known.name, len(self.tasks), "to be completed")
        self._ask_to_stop(known)
        self._waiting = self.loop.create_task(self._wait_for_tasks_to_complete(known))

    def _ask_to_stop(self, signum: Signals) -> None:
        self._asked_to_stop = signum
        if self._queue is not None:
            self._queue.drain(signum)

    async def _wait_for_tasks_to_complete(self, signum: Signals) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._job_completion_wait):
                await self._sleep_until_tasks_complete()
        self._log_shutdown(f"{signum.name}, wait complete", len(self.tasks), "ongoing to cancel")
        if self.on_stop:
            self.on_stop(signum)

    def _log_shutdown(self, reason: str, count: int, state: str) -> None:
        words = "shutdown on %s ◆ %d jobs complete ◆ %d failed ◆ %d retries ◆ %d %s"
        logger.info(words, reason, self.jobs_complete, self.jobs_failed, self.jobs_retried, count, state)

    # --- cron

    async def run_cron(self, n: datetime, delay: float, num_windows: int = 2) -> None:
        """Enqueue the cron jobs that are due within `delay * num_windows` seconds of the time `n`."""
        scheduler = None if self._queue is None else self._queue.scheduler
        if isinstance(scheduler, ArqCron):
            await scheduler.enqueue_due(n, timedelta(seconds=delay * num_windows))

    async def close(self) -> None:
        """Stop if it still runs, call `on_shutdown`, and close the connection."""
        if self._queue is not None and not self._queue.is_draining:
            self.handle_sig(signal.SIGUSR1)
        elif self._queue is None and self._pool is not None and not self._handle_signals:
            self._log_shutdown(signal.SIGUSR1.name, 0, "ongoing to cancel")  # arq's own end of a burst
        await self._idle.wait()
        if self._waiting is not None:
            await cancel_and_wait(self._waiting)
        if self._pool is None:
            return
        try:
            await self.pool.delete(self.health_check_key)
        except RedisError:
            logger.debug("health check key not deleted: it expires on its own")
        if self.on_shutdown:
            await self.on_shutdown(self.ctx)
        await self.pool.aclose(close_connection_pool=True)
        self._pool = None


def _make_signature() -> inspect.Signature:
    """Return arq's own signature, followed by Longhaul's additional arguments."""
    stock, ours = inspect.signature(StockWorker), inspect.signature(Worker.__init__)
    more = [ours.parameters[name] for name in ("settings", "accept_pickle", "mirror")]
    kept = [one for one in stock.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    return stock.replace(parameters=[*kept, *more], return_annotation=inspect.Signature.empty)


Worker.__signature__ = _make_signature()  # type: ignore[attr-defined]


def get_kwargs(settings_cls: Any) -> dict[str, Any]:
    """Return the arguments of `Worker` from a class `WorkerSettings` or a dictionary."""
    known = {*ArqArguments.__annotations__, "functions", "settings", "accept_pickle", "mirror"}
    values = settings_cls if isinstance(settings_cls, Mapping) else settings_cls.__dict__
    return {name: value for name, value in values.items() if name in known}


def create_worker(settings_cls: Any, **arguments: Any) -> Worker:
    """Return the worker of a class `WorkerSettings`; `arguments` override its attributes."""
    return Worker(**{**get_kwargs(settings_cls), **arguments})


def run_worker(settings_cls: Any, **arguments: Any) -> Worker:
    """Run the worker of a class `WorkerSettings` until its end; see `create_worker`."""
    worker = create_worker(settings_cls, **arguments)
    worker.run()
    return worker


def _sorted(functions: Sequence[Any]) -> tuple[list[Job[..., Any]], list[Function]]:
    """Return the `@job` functions and arq's functions."""
    jobs: list[Job[..., Any]] = []
    others: list[Function] = []
    for one in functions:
        found = import_string(one) if isinstance(one, str) else one
        if isinstance(found, Job):
            jobs.append(found)
        else:
            others.append(func(one))
    return jobs, others


def _settings(given: Settings | None, arguments: ArqArguments, *, needs_database: bool) -> Settings:
    if given is not None:
        return given
    if needs_database:
        found, origins = load_with_origins()
        if origins["database.url"] == "default":
            raise RegistrationError("a @job needs PostgreSQL: set DATABASE_URL, or database.url in settings.toml")
        return found
    # A project that has only arq's functions may have a DATABASE_URL and a settings.toml of its own.
    environment = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    if arguments.get("redis_settings") is not None or arguments.get("redis_pool") is not None:
        environment.pop("REDIS_URL", None)
    return load_with_origins(environment.get("LONGHAUL_SETTINGS") or os.devnull, environment=environment)[0]
