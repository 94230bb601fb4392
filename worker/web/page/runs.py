"""The list of runs."""

from __future__ import annotations

from typing import Any

from worker.db.tables import RUN_STATES
from worker.web.bodies import RunsQuery
from worker.web.page.failures import list_job_names
from worker.web.page.visit import Visit
from worker.web.views import OverviewView


async def load_runs(visit: Visit) -> dict[str, Any]:
    """Return the values of `runs.html`."""
    query: RunsQuery = visit.query
    page = await visit.read("list_runs", **query.model_dump())
    jobs = await list_job_names(visit, {run.job for run in page.items})
    overview: OverviewView = await visit.read("show_overview")
    return {
        "page": page,
        "jobs": jobs,
        "states": RUN_STATES,
        "paused": set(overview.paused),
        "letters": overview.dead_letters,
    }
