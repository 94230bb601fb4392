"""The observers of a worker, made from its settings: what it shows, keeps, traces and counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from redis.asyncio import Redis

from worker.job.middleware import Middleware
from worker.observe.mirror import Mirror
from worker.observe.run_log import RunLog
from worker.queue.outage_log import OutageLog
from worker.runtime.observer import Observer, Observers
from worker.settings import Settings

if TYPE_CHECKING:  # it needs OpenTelemetry
    from worker.observe.tracing import RunTracing


@dataclass(frozen=True)
class Observation:
    """The observers of a worker.

    Attributes:
        observer: all of them, as one.
        tracing: the outermost middleware, which traces runs; None without tracing.
        log: keeps the logs of runs; None if they are not kept. It needs the ledger of the worker, if there is one.
    """

    observer: Observers
    tracing: RunTracing | None
    log: RunLog | None


def make_observation(
    settings: Settings,
    name: str,
    jobs: Iterable[str],
    *,
    redis: Redis,
    outage: OutageLog,
    shown: Observer,
    keeps_log: bool,
    middleware: Sequence[Middleware],
    counted: Observer | None,
) -> Observation:
    """Return the observers of a worker. Connect nothing.

    Args:
        settings: the settings.
        name: name of the worker.
        jobs: names of its jobs.
        redis: its connection.
        outage: logs outages of Redis.
        shown: shows its runs in Redis.
        keeps_log: whether the logs of runs may be kept in Redis.
        middleware: the middleware, whose observers receive the events, too.
        counted: counts for Prometheus; None for none.
    """
    log = RunLog(redis, settings, name, outage) if keeps_log and settings.log.run_lines else None
    traced: list[Observer] = []
    tracing = None
    if settings.tracing.enabled:
        from worker.observe.otel_metrics import OtelMetrics
        from worker.observe.tracing import RunTracing

        tracing = RunTracing(
            settings, name, shown.note_span if isinstance(shown, Mirror) else lambda run_id, span: None
        )
        traced = [OtelMetrics(jobs, settings.worker.queues or [settings.worker.queue]), tracing.observer]
    parts = [shown, log, *traced, counted, *(one.observer for one in middleware)]
    return Observation(Observers([one for one in parts if isinstance(one, Observer)]), tracing, log)
