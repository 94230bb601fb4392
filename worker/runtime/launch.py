"""From settings to a running worker: the one place where all rooms meet."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence

from worker.cancellation import cancel_and_wait
from worker.db.migrate import migrate
from worker.errors import RegistrationError
from worker.job.middleware import Middleware, load_middleware
from worker.job.registry import Registry, discover
from worker.observe.logs import configure
from worker.observe.mirror import Mirror
from worker.queue.outage_log import OutageLog
from worker.runtime.worker import QueueWorker, connect_redis, worker_name
from worker.settings import Settings

logger = logging.getLogger("longhaul")


async def work(
    settings: Settings,
    registry: Registry | None = None,
    *,
    burst: bool = False,
    migrate_first: bool = False,
    on_worker: Callable[[QueueWorker], None] = lambda worker: None,
    middleware: Sequence[Middleware] | None = None,
) -> None:
    """Run a worker in this event loop, until it is drained or, in a burst, nothing is due.

    Args:
        settings: of this process.
        registry: jobs; those found in `worker.packages` by default.
        burst: end when nothing is due.
        migrate_first: bring the ledger's schema up to date first.
        middleware: around each run; that of `worker.middleware` by default.
        on_worker: called with the worker before it starts.

    Raises:
        ServerUnavailable: PostgreSQL or Redis does not answer.
        DatabaseNotMigrated: the schema `worker` is missing or old.
        RegistrationError: the jobs cannot be loaded.
    """
    known = discover(settings.worker.packages) if registry is None else registry
    if not known:
        raise RegistrationError(
            f"no @job function in {', '.join(settings.worker.packages)}; name their packages in worker.packages"
        )
    redis = connect_redis(settings)
    outage = OutageLog()
    mirror = Mirror(redis, settings, worker_name(settings), outage)
    around = load_middleware(settings.worker.middleware) if middleware is None else middleware
    worker = QueueWorker(settings, known, observer=mirror, burst=burst, redis=redis, outage=outage, middleware=around)
    on_worker(worker)
    try:
        if migrate_first:
            await worker.database.check()
            await migrate(worker.database)
        await serve(worker, mirror)
    finally:
        await worker.close()


async def serve(worker: QueueWorker, mirror: Mirror) -> None:
    """Run a worker until its end, and show what it does; see `work` for what is raised."""
    mirror.worker_event("worker_started")
    writing: asyncio.Task[None] | None = None
    try:
        main = asyncio.create_task(worker.main())
        writing = asyncio.create_task(mirror.run())
        await main
    finally:
        if writing is not None:
            await cancel_and_wait(writing)
        mirror.worker_event("worker_stopped", "stopped")
        await mirror.write(final=True)


def run(settings: Settings, *, burst: bool = False, migrate_first: bool = False) -> None:
    """Run a worker as this process: its log, its signals, its event loop. See `work` for what is raised.

    Jobs that were given up, and still go on when the worker ends, do not hold the end of the process.
    """
    configure(settings.log)
    # What is loaded by now stays: each full garbage collection in a walk would look at all of it again.
    gc.collect()
    gc.freeze()

    known: list[QueueWorker] = []

    def listen(worker: QueueWorker) -> None:
        known.append(worker)
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, worker.drain, signum)

    async def work_and_leave() -> None:
        await work(settings, burst=burst, migrate_first=migrate_first, on_worker=listen)
        left = sum(worker.abandoned_tasks for worker in known)
        if left:  # the loop would wait for them for ever
            logger.warning("the process ends without %d jobs that were given up", left)
            logging.shutdown()
            sys.stdout.flush()
            os._exit(0)

    job = work_and_leave()
    if settings.worker.uvloop and sys.platform != "win32":
        import uvloop

        uvloop.run(job)
    else:
        asyncio.run(job)
