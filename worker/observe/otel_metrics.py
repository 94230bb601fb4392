"""The metrics of a worker through the API of OpenTelemetry, under the names of those for Prometheus.

`definitions` of `worker.observe.metrics` is the one table of both. Counters and gauges are read from the counts of
`Metrics` in the event loop, and the reader of the application, a thread, sees the last reading.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Any

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from worker.batch import Progress
from worker.observe.metrics import definitions as names
from worker.observe.metrics.observer import Metrics
from worker.observe.metrics.snapshot import Snapshot
from worker.runtime.observer import RunInfo

_READ_SECONDS = 1.0
_SECONDS_TO_FLUSH = 4.0


class OtelMetrics(Metrics):
    """Counts the events of a worker for OpenTelemetry. The state of the servers is not among them.

    Args:
        jobs: the registered jobs.
        queues: the queues that the worker serves.
    """

    def __init__(self, jobs: Iterable[str], queues: Iterable[str]) -> None:
        jobs, queues = list(jobs), list(queues)
        super().__init__(jobs, queues)
        self._labels = set(sorted(set(jobs))[: names.MOST_JOBS])
        self._served = set(queues)
        self._last: Snapshot = {}
        self._meter = metrics.get_meter("longhaul")
        self._histograms: dict[str, metrics.Histogram] = {}
        for metric in names.METRICS:
            if not metric.of_servers:
                self._create(metric)

    def _create(self, metric: names.Metric) -> None:
        if metric.kind == "histogram":
            self._histograms[metric.name] = self._meter.create_histogram(
                metric.name, "s", metric.help, explicit_bucket_boundaries_advisory=metric.buckets
            )
        elif metric.kind == "counter":
            self._meter.create_observable_counter(metric.name, [self._reader(metric)], description=metric.help)
        else:
            self._meter.create_observable_gauge(metric.name, [self._reader(metric)], description=metric.help)

    def _reader(self, metric: names.Metric) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def read(options: CallbackOptions) -> Iterable[Observation]:
            for labels, value in self._last.get(metric.name, {}).items():
                if not isinstance(value, list):
                    yield Observation(value, dict(zip(metric.labels, labels, strict=True)))

        return read

    async def run(self) -> None:
        """Read the counts until cancelled."""
        while True:
            self._last = self.snapshot()
            await asyncio.sleep(_READ_SECONDS)

    async def close(self) -> None:
        """Read the counts for the last time, and send what the provider of the application has kept."""
        self._last = self.snapshot()
        flush = getattr(metrics.get_meter_provider(), "force_flush", None)
        if flush is not None:
            await asyncio.wait_for(asyncio.to_thread(flush), _SECONDS_TO_FLUSH)

    # --- histograms: OpenTelemetry counts the values itself

    def started(self, run: RunInfo) -> None:
        """See `Metrics`."""
        super().started(run)
        due_ms = max(run.due_ms, run.enqueued_ms)
        if due_ms > 0 and not run.took_over:
            queue = run.queue if run.queue in self._served else names.OTHER
            self._record(names.LATENCY_SECONDS, run.job, time.time() - due_ms / 1000, queue=queue)

    def progressed(self, run: RunInfo, progress: Progress, *, rows: int) -> None:
        """See `Metrics`."""
        super().progressed(run, progress, rows=rows)
        if progress.batches:
            self._record(names.BATCH_SECONDS, run.job, progress.batch_seconds)

    def requeued(
        self, run: RunInfo, state: str, *, error: str | None = None, delay: float = 0.0, how: str = "released"
    ) -> None:
        """See `Metrics`."""
        self._record_run(run)
        super().requeued(run, state, error=error, delay=delay, how=how)

    def ended(self, run: RunInfo, state: str, *, error: str | None = None, result: Any = None) -> None:
        """See `Metrics`."""
        self._record_run(run)
        super().ended(run, state, error=error, result=result)

    def lost(self, run: RunInfo) -> None:
        """See `Metrics`."""
        self._record_run(run)
        super().lost(run)

    def cron_fired(self, job: str, *, run_id: str, late_seconds: float) -> None:
        """See `Metrics`."""
        super().cron_fired(job, run_id=run_id, late_seconds=late_seconds)
        self._record(names.CRON_LATENESS, job, late_seconds)

    def _record_run(self, run: RunInfo) -> None:
        begun = self._begun.get(run.run_id)
        if begun is not None:
            self._record(names.RUN_SECONDS, run.job, time.monotonic() - begun)

    def _record(self, metric: names.Metric, job: str, seconds: float, **labels: str) -> None:
        labels["job"] = job if job in self._labels else names.OTHER
        self._histograms[metric.name].record(max(0.0, seconds), labels)
