"""The overview: queues, workers, what runs, what failed, what waits and why, and cron."""

from __future__ import annotations

from typing import Any

from worker.web.page.visit import Visit


async def load_overview(visit: Visit) -> dict[str, Any]:
    """Return the values of `overview.html`."""
    overview = await visit.read("show_overview")
    return {"overview": overview}
