"""`/metrics`, `/healthz` and `/readyz` of the HTTP API: the state of queues, outbox and servers."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from worker.observe.metrics.endpoint import Page
from worker.observe.metrics.health import Health
from worker.observe.metrics.http_server import Answer
from worker.observe.metrics.servers import Servers
from worker.runtime.supervision import end_tasks, supervise
from worker.settings import Settings

_STOP_SECONDS = 2.0


class Monitoring:
    """Reads what the three paths show. Opens nothing before the first request, and reads on in the background.

    Args:
        settings: the settings.
    """

    def __init__(self, settings: Settings) -> None:
        self._rules = settings.metrics
        self._servers = Servers(settings, list(settings.worker.queues) or [settings.worker.queue], "web")
        self._page = Page(self._servers.snapshot)
        self._reading: asyncio.Task[None] | None = None

    async def check(self) -> Health:
        """Return whether the servers answer and the ledger is migrated."""
        return Health.of_checks(await self._servers.check())

    async def metrics(self) -> Answer:
        """Return the page of metrics."""
        if self._reading is None:
            self._reading = asyncio.create_task(supervise("metrics", self._servers.run), name="metrics")
        if not self._servers.has_read.is_set():  # the first scrape waits for the first read, but not for ever
            with suppress(TimeoutError):
                async with asyncio.timeout(self._rules.answer_seconds):
                    await self._servers.has_read.wait()
        return await self._page.answer()

    async def close(self) -> None:
        """End the reads, and close the connections."""
        if self._reading is not None:
            await end_tasks([self._reading], seconds=_STOP_SECONDS)
        await self._servers.close()
