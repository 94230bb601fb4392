"""The list of runs."""

from __future__ import annotations

from typing import Any

from worker.web.bodies import RunsQuery
from worker.web.page.visit import Visit


async def load_runs(visit: Visit) -> dict[str, Any]:
    """Return the values of `runs.html`."""
    query: RunsQuery = visit.query
    return {"page": await visit.read("list_runs", **query.model_dump())}
