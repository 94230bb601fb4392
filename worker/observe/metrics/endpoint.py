"""The metrics of one worker: counts its events, reads the servers, and answers at `/metrics`, `/healthz`, `/readyz`.

If it is one of several processes of a supervisor, it listens nowhere: it sends what it has to the supervisor, which
answers for all of them.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from worker.errors import SettingsError
from worker.observe.metrics import definitions as names
from worker.observe.metrics.health import check_liveness, check_readiness
from worker.observe.metrics.http_server import Answer, HttpServer
from worker.observe.metrics.observer import Metrics
from worker.observe.metrics.reports import Reporter
from worker.observe.metrics.servers import Servers
from worker.observe.metrics.snapshot import Snapshot
from worker.runtime.supervision import end_tasks, supervise
from worker.runtime.wiring import worker_name
from worker.runtime.worker import Worker
from worker.settings import Settings

logger = logging.getLogger("longhaul.metrics")

#: Age up to which scrapes share one rendered page.
_SHARED_SECONDS = 1.0
_STOP_SECONDS = 2.0


def check_installed() -> None:
    """Raise `SettingsError` if the package of the extra `metrics` is missing."""
    if importlib.util.find_spec("prometheus_client") is None:
        raise SettingsError("metrics.port needs prometheus-client: pip install 'longhaul-worker[metrics]'")


class Page:
    """The page of metrics, rendered at most once a second, however many scrapers there are.

    Args:
        snapshot: returns the values.
    """

    def __init__(self, snapshot: Callable[[], Snapshot]) -> None:
        from worker.observe.metrics.exposition import CONTENT_TYPE, Exposition

        self._snapshot = snapshot
        self._exposition = Exposition()
        self._content_type = CONTENT_TYPE
        self._rendered_at = -_SHARED_SECONDS
        self._body = b""

    async def answer(self) -> Answer:
        """Return the page."""
        if time.monotonic() - self._rendered_at >= _SHARED_SECONDS:
            self._body = self._exposition.render(self._snapshot())
            self._rendered_at = time.monotonic()
        return Answer(200, self._body, self._content_type)


class MetricsEndpoint:
    """The metrics of a worker.

    Args:
        settings: the settings.
        jobs: names of the registered jobs.
        report_to: path of the supervisor's Unix socket; None to listen at `metrics.port`.
        has_ledger: whether the worker uses PostgreSQL: one that has only functions of arq does not.

    Attributes:
        observer: counts the events; the worker has to report to it.
        port: the port on which it listens; None before it does.
    """

    def __init__(
        self, settings: Settings, jobs: Iterable[str], report_to: str | None = None, *, has_ledger: bool = True
    ) -> None:
        check_installed()
        self._settings = settings
        self._report_to = report_to
        queues = list(settings.worker.queues) or [settings.worker.queue]
        self.observer = Metrics(jobs, queues)
        self.port: int | None = None
        self._servers = Servers(settings, queues, worker_name(settings), has_ledger=has_ledger)

    @asynccontextmanager
    async def serving(self, worker: Worker) -> AsyncIterator[None]:
        """Serve, or report to the supervisor, while the block runs.

        Raises:
            SettingsError: it cannot listen there.
        """

        async def healthz() -> Answer:
            return check_liveness(worker).as_answer()

        async def readyz() -> Answer:
            return (await check_readiness(worker, self._servers)).as_answer()

        rules, server, reporter = self._settings.metrics, None, None
        page = Page(lambda: self.snapshot(worker))
        if self._report_to is None:
            handlers = {"/metrics": page.answer, "/healthz": healthz, "/readyz": readyz}
            server = HttpServer(rules.host, rules.port or 0, handlers)
            await server.start()
            self.port = server.port
        else:
            reporter = Reporter(self._report_to, lambda: self.snapshot(worker), worker, self._servers)
        work = {"metrics": self._servers.run} | ({} if reporter is None else {"reporter": reporter.run})
        tasks = [asyncio.create_task(supervise(name, run), name=name) for name, run in work.items()]
        try:
            yield
        finally:
            await end_tasks(tasks, seconds=_STOP_SECONDS)
            if server is not None:
                await server.close()
            if reporter is not None:
                await reporter.close()
            await self._servers.close()

    def snapshot(self, worker: Worker) -> Snapshot:
        """Return all values."""
        of_worker = {
            names.SLOTS: float(self._settings.worker.max_jobs),
            names.SLOTS_USED: float(len(worker.tasks)),
            names.POOL_SIZE: float(self._settings.pool_size + self._settings.max_overflow),
            names.POOL_USED: float(worker.database.connections_in_use),
            names.DRAINING: float(worker.is_draining),
        }
        values: Snapshot = {metric.name: {(): value} for metric, value in of_worker.items()}
        return {**self.observer.snapshot(), **values, **self._servers.snapshot()}


def make_endpoint(
    settings: Settings, jobs: Iterable[str], report_to: str | None = None, *, has_ledger: bool = True
) -> MetricsEndpoint | None:
    """Return the metrics of a worker, which listens at `metrics.port` or reports to a supervisor; None for none."""
    wanted = report_to is not None or settings.metrics.port is not None
    return MetricsEndpoint(settings, jobs, report_to, has_ledger=has_ledger) if wanted else None
