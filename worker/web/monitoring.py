"""`/metrics`, `/healthz` and `/readyz` of the HTTP API: the state of queues, outbox and servers."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from starlette.responses import Response

from worker.observe.metrics.endpoint import Page
from worker.observe.metrics.health import Health
from worker.observe.metrics.http_server import Answer
from worker.observe.metrics.servers import Servers
from worker.runtime.supervision import end_tasks, supervise
from worker.settings import Settings

METRICS, LIVE, READY = "metrics", "healthz", "readyz"
PATHS = frozenset({(METRICS,), (LIVE,), (READY,)})
_STOP_SECONDS = 2.0


class Monitoring:
    """Answers at the three paths. Opens nothing before the first request, and reads in the background from then on.

    Args:
        settings: the settings.
    """

    def __init__(self, settings: Settings) -> None:
        self._rules = settings.metrics
        self._servers = Servers(settings, list(settings.worker.queues) or [settings.worker.queue], "web")
        self._page = Page(self._servers.snapshot)
        self._reading: asyncio.Task[None] | None = None

    async def respond(self, path: str) -> Response:
        """Return the response at one of the paths. The caller has authenticated a request for the metrics."""
        if path == METRICS:
            answer = await self._metrics()
        elif path == LIVE:
            answer = Health(True).as_answer()
        else:
            answer = Health.of_checks(await self._servers.check()).as_answer()
        return Response(answer.body, answer.status, headers={"Content-Type": answer.content_type})

    async def _metrics(self) -> Answer:
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
        self._page.close()
        await self._servers.close()
