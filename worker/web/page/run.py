"""The page of a run: its story, plots, steps, hands, arguments, result or error, rows in quarantine, and orders."""

from __future__ import annotations

from typing import Any

from worker.web.page.visit import Visit


async def load_run(visit: Visit) -> dict[str, Any]:
    """Return the values of `run.html`."""
    return {"run": await visit.read("show_run", visit.path)}
