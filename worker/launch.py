"""Starts workers: one inside your own event loop (`running`), or one as the whole process (`main`)."""

from __future__ import annotations

import asyncio
import atexit
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any

from worker.db.migrate import migrate
from worker.errors import RegistrationError
from worker.job.definition import Job
from worker.job.middleware import Middleware, configured_middleware
from worker.job.registry import Registry, discover
from worker.ledger import Ledger
from worker.observe.logs import configure
from worker.observe.metrics.endpoint import MetricsEndpoint, make_endpoint
from worker.observe.mirror import Mirror
from worker.observe.wiring import make_observation
from worker.queue.outage_log import OutageLog
from worker.runtime.observer import Observer
from worker.runtime.service_manager import ServiceManager
from worker.runtime.supervision import end_tasks
from worker.runtime.wiring import build_worker, connect_redis, worker_name
from worker.runtime.worker import Worker
from worker.settings import Settings, load_settings

logger = logging.getLogger("longhaul.worker")

#: Exit code of a process that ended although code of abandoned jobs was still running in it.
EXIT_ABANDONED = 75
_EXIT_HOOKS_SECONDS = 5.0
_WATCH_SECONDS = 1.0
#: Time, in seconds, for tasks that jobs have not awaited to end after their cancellation.
_REMAINING_TASKS_SECONDS = 2.0
#: Objects of a row live only briefly: collect the young generation less often, and the old ones far less often.
_GC_THRESHOLDS = (50_000, 20, 100)


def make_worker(
    settings: Settings,
    registry: Registry,
    *,
    burst: bool = False,
    middleware: Sequence[Middleware] | None = None,
    observer: Observer | None = None,
    endpoint: MetricsEndpoint | None = None,
) -> Worker:
    """Return a worker that publishes its runs in Redis. Connect nothing.

    The observers of the middleware receive the worker's events.

    Args:
        settings: the settings of the process.
        registry: the jobs of the worker.
        burst: whether to end when nothing is due.
        middleware: the middleware around each attempt; `worker.middleware` by default.
        observer: receives the worker's events instead of the mirror in Redis.
        endpoint: counts the worker's events as well; None for none.
    """
    redis, outage, name = connect_redis(settings), OutageLog(), worker_name(settings)
    hooks = list(configured_middleware(settings) if middleware is None else middleware)
    observation = make_observation(
        settings,
        name,
        registry,
        redis=redis,
        outage=outage,
        shown=observer or Mirror(redis, settings, name, outage, registry.code_version),
        keeps_log=observer is None,
        middleware=hooks,
        counted=endpoint.observer if endpoint else None,
    )
    worker = build_worker(
        settings,
        registry,
        observer=observation.observer,
        burst=burst,
        redis=redis,
        outage=outage,
        middleware=[*([observation.tracing] if observation.tracing else []), *hooks],
    )
    if observation.log is not None:
        observation.log.ledger = Ledger(worker.database)
    return worker


async def run_until_drained(
    settings: Settings,
    registry: Registry | None = None,
    *,
    burst: bool = False,
    migrate_first: bool = False,
    on_worker: Callable[[Worker], None] = lambda worker: None,
    middleware: Sequence[Middleware] | None = None,
    observer: Observer | None = None,
    report_to: str | None = None,
) -> None:
    """Run a worker in this event loop, until it is drained or, in a burst, nothing is due.

    Args:
        settings: the settings of this process.
        registry: the jobs of the worker; by default those found in `worker.packages`.
        burst: whether to end when nothing is due.
        migrate_first: whether to migrate the ledger's schema first.
        on_worker: called with the worker before it starts.
        middleware: the middleware around each attempt; `worker.middleware` by default.
        observer: receives the worker's events instead of the mirror in Redis.
        report_to: path of the socket of a supervisor that serves the metrics; by default, `metrics.port` decides.

    Raises:
        ServerUnavailable: PostgreSQL or Redis does not answer.
        DatabaseNotMigrated: the schema `worker` is missing or old.
        RegistrationError: the jobs cannot be loaded.
        SettingsError: the worker cannot listen at `metrics.port`.
    """
    known = discover(settings.worker.packages) if registry is None else registry
    if not known:
        raise RegistrationError(
            f"no @job function in {', '.join(settings.worker.packages)}; name their packages in worker.packages"
        )
    endpoint = make_endpoint(settings, known, report_to)
    worker = make_worker(settings, known, burst=burst, middleware=middleware, observer=observer, endpoint=endpoint)
    on_worker(worker)
    try:
        async with nullcontext() if endpoint is None else endpoint.serving(worker):
            if migrate_first:
                await worker.database.check()
                await migrate(worker.database)
            await worker.run()
    finally:
        await worker.close()


@asynccontextmanager
async def running(
    settings: Settings | None = None,
    *,
    jobs: Iterable[Job[..., Any]] | None = None,
    burst: bool = False,
    migrate_first: bool = False,
    middleware: Sequence[Middleware] | None = None,
) -> AsyncIterator[Worker]:
    """Run a worker in this event loop while the block runs; drain it at the end of the block.

    ```python
    async with running(settings, jobs=[send_mail]) as worker: ...
    ```

    The block begins when the worker is ready to claim jobs. The worker handles no signals; call `worker.drain()` to
    stop it earlier. If the worker ends with an error, the block is cancelled and the error is raised.

    Args:
        settings: the settings of the worker; by default from `settings.toml` and the environment.
        jobs: the jobs of the worker; by default those found in `worker.packages`.
        burst: whether the worker ends when nothing is due; the block continues.
        migrate_first: whether to migrate the ledger's schema first.
        middleware: the middleware around each attempt; `worker.middleware` by default.

    Raises:
        ServerUnavailable: PostgreSQL or Redis does not answer.
        DatabaseNotMigrated: the schema `worker` is missing or old.
        RegistrationError: the jobs cannot be loaded.
    """
    made: list[Worker] = []
    run = run_until_drained(
        settings or load_settings(),
        None if jobs is None else Registry(jobs),
        burst=burst,
        migrate_first=migrate_first,
        on_worker=made.append,
        middleware=middleware,
    )
    task = asyncio.create_task(run, name="worker")
    await asyncio.sleep(0)  # let the task build the worker, or fail
    if not made:
        await task
    async with _bound_to(task, made[0]):
        yield made[0]


@asynccontextmanager
async def _bound_to(task: asyncio.Task[None], worker: Worker) -> AsyncIterator[None]:
    """Cancel the block if the task of the worker fails; drain the worker at the end of the block."""
    block, in_block, has_failed = asyncio.current_task(), True, False

    def end_block(ended: asyncio.Task[None]) -> None:
        nonlocal has_failed
        if in_block and block is not None and not ended.cancelled() and ended.exception() is not None:
            has_failed = True
            block.cancel()

    try:
        ready = asyncio.create_task(worker.ready.wait())
        await asyncio.wait({ready, task}, return_when=asyncio.FIRST_COMPLETED)
        ready.cancel()
        if task.done():
            await task
        task.add_done_callback(end_block)
        yield
    except asyncio.CancelledError:
        if has_failed and block is not None:
            block.uncancel()
            await task
        raise
    finally:
        in_block = False
        if not task.done():
            worker.drain(why="end of block")
        await task


def tune_garbage_collector() -> None:
    """Tune the garbage collector for walks, once in each worker process. It is never disabled.

    CPython searches for reference cycles after each 700 new containers. A page of 10,000 rows has as many containers
    and no cycle; with the default thresholds, the search takes longer than the driver. Modules that are already loaded
    are never freed, so they are frozen: otherwise each full collection would traverse them again.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


def main(
    settings: Settings,
    *,
    burst: bool = False,
    migrate_first: bool = False,
    observer: Observer | None = None,
    report_to: str | None = None,
) -> None:
    """Run a worker as this process, with log, signals and event loop. Raise the errors of `run_until_drained`.

    If code of abandoned jobs, or a task that a job has not awaited, still runs at the end, the process exits with code
    75 without waiting for it. It does the same if a drain exceeds its time limit.
    """
    configure(settings.log, worker=worker_name(settings))
    tune_garbage_collector()

    signalled, done, manager = threading.Event(), threading.Event(), ServiceManager.from_environment()

    def watch(worker: Worker) -> None:
        loop = asyncio.get_running_loop()

        def handle_signal(signum: int, frame: object) -> None:
            # Not `loop.add_signal_handler`: this handler also runs while a job blocks the event loop.
            signalled.set()
            loop.call_soon_threadsafe(worker.drain, signum)

        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, handle_signal)
        threading.Thread(target=_end_in_time, args=(worker, signalled, done), name="watchdog", daemon=True).start()

    async def run_and_exit() -> None:
        workers: list[Worker] = []

        def on_worker(worker: Worker) -> None:
            workers.append(worker)
            watch(worker)
            manager.start(worker)

        await run_until_drained(
            settings,
            burst=burst,
            migrate_first=migrate_first,
            on_worker=on_worker,
            observer=observer,
            report_to=report_to,
        )
        await manager.stop()
        await _end_remaining_tasks(sum(worker.abandoned_tasks for worker in workers))

    try:
        if settings.worker.uvloop and sys.platform != "win32":
            import uvloop

            uvloop.run(run_and_exit())
        else:
            asyncio.run(run_and_exit())
    finally:
        done.set()


def _end_in_time(worker: Worker, signalled: threading.Event, done: threading.Event) -> None:
    """End the process if a drain exceeds its limit, e.g. because the event loop is blocked. Run this in a thread."""
    while not worker.is_draining and not signalled.wait(_WATCH_SECONDS):
        pass
    if not done.wait(worker.shutdown_seconds):
        words = "process ends worker=%s seconds=%.0f: the drain has not ended in time; jobs are left to their leases"
        logger.error(words, worker.name, worker.shutdown_seconds)
        exit_now(EXIT_ABANDONED)


async def _end_remaining_tasks(abandoned_jobs: int) -> None:
    """Cancel tasks that jobs have not awaited. If one does not end, end the process without waiting for it."""
    remaining = asyncio.all_tasks() - {asyncio.current_task()}
    remaining = await end_tasks(remaining, seconds=0.0 if abandoned_jobs else _REMAINING_TASKS_SECONDS)
    if abandoned_jobs or remaining:  # the event loop would wait for them forever
        words = "process ends abandoned_jobs=%d tasks=%s: their code still runs"
        logger.warning(words, abandoned_jobs, ", ".join(sorted(task.get_name() for task in remaining)))
        exit_now(EXIT_ABANDONED)


def exit_now(code: int) -> None:
    """End the process without waiting for its threads and tasks, but run exit hooks and flush the log first."""
    # Exit hooks, e.g. of OpenTelemetry or Sentry, send their buffers. A hook that hangs must not delay the exit.
    hooks = threading.Thread(target=atexit._run_exitfuncs, daemon=True)
    hooks.start()
    hooks.join(_EXIT_HOOKS_SECONDS)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)
