"""The port of a supervisor: the metrics and the health of all its worker processes.

It runs in the thread of the supervisor, whose loop gives it the time between two looks at the processes: `wait`.
"""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from worker.cancellation import cancel_and_wait
from worker.observe.metrics.endpoint import Page, check_installed
from worker.observe.metrics.health import Health
from worker.observe.metrics.http_server import Answer, HttpServer
from worker.observe.metrics.reports import MOST_BYTES
from worker.observe.metrics.snapshot import Snapshot, keep_counts, load, merge
from worker.settings import Settings

logger = logging.getLogger("longhaul.metrics")

#: Age of the last report of a process that counts as silence, and time in which all processes have to report.
_SILENT_SECONDS = 15.0
_START_SECONDS = 60.0
_UNKNOWN = Health(True)
_STARTING = Health(False, {"worker": "starting"})


@dataclass
class Report:
    """The last report of a process.

    Attributes:
        values: its values.
        live: its answer to `/healthz`.
        ready: its answer to `/readyz`.
        at: when it arrived, by the monotonic clock.
    """

    values: Snapshot = field(default_factory=dict)
    live: Health = _UNKNOWN
    ready: Health = _STARTING
    at: float = field(default_factory=time.monotonic)


class ProcessMetrics:
    """Collects the reports of the processes, and answers for all of them. Use it in a `with` block.

    Args:
        settings: the settings; `metrics.port` is set.
        processes: number of processes.

    Raises:
        SettingsError: it cannot listen at `metrics.port`, or the package is missing.
    """

    def __init__(self, settings: Settings, processes: int) -> None:
        check_installed()
        self._page = Page(lambda: merge([self._ended, *(report.values for report in self._reports.values())]))
        handlers = {"/metrics": self._page.answer, "/healthz": self._healthz, "/readyz": self._readyz}
        self._http = HttpServer(settings.metrics.host, settings.metrics.port or 0, handlers)
        self._processes = processes
        self._loop = asyncio.new_event_loop()
        self._directory = tempfile.TemporaryDirectory(prefix="longhaul-")
        self._server: asyncio.Server | None = None
        self._reports: dict[asyncio.StreamReader, Report] = {}
        self._ended: Snapshot = {}
        self._complete_at = time.monotonic()

    @property
    def port(self) -> int:
        """The port on which it listens."""
        return self._http.port

    @property
    def path(self) -> str:
        """Path of the socket to which the processes report."""
        return f"{self._directory.name}/metrics"

    def __enter__(self) -> Self:
        try:
            self._loop.run_until_complete(self._start())
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def wait(self, seconds: float) -> None:
        """Answer and collect for some seconds."""
        self._loop.run_until_complete(asyncio.sleep(seconds))

    async def _start(self) -> None:
        self._server = await asyncio.start_unix_server(self._collect, self.path, limit=MOST_BYTES)
        await self._http.start()

    def _close(self) -> None:
        try:
            self._loop.run_until_complete(self._stop())
        finally:
            self._loop.close()
            self._directory.cleanup()

    async def _stop(self) -> None:
        await self._http.close()
        if self._server is not None:
            self._server.close()
        await cancel_and_wait(*(task for task in asyncio.all_tasks() if task is not asyncio.current_task()))

    async def _collect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take the reports of one process until it closes its connection."""
        report = self._reports[reader] = Report()
        try:
            async for line in reader:
                found = json.loads(line)
                report.values = load(found["values"])
                report.live, report.ready = (Health(**found["health"][kind]) for kind in ("live", "ready"))
                report.at = time.monotonic()
        except (OSError, ValueError) as error:
            logger.warning("reports of a process end error=%s", error)
        finally:
            del self._reports[reader]
            self._ended = merge([self._ended, keep_counts(report.values)])
            writer.close()

    # --- the answers

    async def _healthz(self) -> Answer:
        now, checks = time.monotonic(), _join([report.live for report in self._reports.values()])
        if len(self._reports) >= self._processes:
            self._complete_at = now
        is_missing = now - self._complete_at > _START_SECONDS
        checks["processes"] = self._count_silent() or (self._count() if is_missing else "ok")
        return Health.of_checks(checks).as_answer()

    async def _readyz(self) -> Answer:
        checks = _join([report.ready for report in self._reports.values()])
        is_complete = len(self._reports) >= self._processes
        checks["processes"] = self._count_silent() or ("ok" if is_complete else self._count())
        return Health.of_checks(checks).as_answer()

    def _count(self) -> str:
        return f"{len(self._reports)} of {self._processes} run"

    def _count_silent(self) -> str | None:
        silent = sum(time.monotonic() - report.at > _SILENT_SECONDS for report in self._reports.values())
        return f"{silent} of {self._processes} do not report" if silent else None


def _join(healths: list[Health]) -> dict[str, str]:
    """Return for each check the first problem that a process has with it."""
    checks: dict[str, str] = {}
    for health in healths:
        for name, text in health.checks.items():
            checks[name] = text if checks.get(name, "ok") == "ok" else checks[name]
    return checks
