"""The views of failures: dead letters, quarantined rows, and the outbox."""

from __future__ import annotations

import contextlib
from typing import Any

from worker.errors import RegistrationError
from worker.web.bodies import DeadLettersQuery, OutboxQuery, QuarantineQuery
from worker.web.page.visit import Visit
from worker.web.views import OverviewView, QuarantinedRowView


async def load_dead(visit: Visit) -> dict[str, Any]:
    """Return the values of `dead.html`."""
    query: DeadLettersQuery = visit.query
    overview: OverviewView = await visit.read("show_overview")
    page = await visit.read("list_dead_letters", **query.model_dump())
    jobs = {letter.job for letter in page.items if letter.job}
    return {"page": page, "count": overview.dead_letters, "jobs": await list_job_names(visit, jobs)}


async def load_quarantine(visit: Visit) -> dict[str, Any]:
    """Return the values of `quarantine.html`: the rows, those of a run together."""
    query: QuarantineQuery = visit.query
    page = await visit.read("list_quarantine", **query.model_dump())
    rows: list[QuarantinedRowView] = page.items
    groups: dict[str, list[QuarantinedRowView]] = {}
    for row in rows:
        groups.setdefault(row.run_id, []).append(row)
    jobs = {row.job for row in rows}
    return {"page": page, "groups": list(groups.items()), "jobs": await list_job_names(visit, jobs)}


async def load_outbox(visit: Visit) -> dict[str, Any]:
    """Return the values of `outbox.html`."""
    query: OutboxQuery = visit.query
    return {"page": await visit.read("list_outbox", **query.model_dump())}


async def list_job_names(visit: Visit, more: set[str]) -> list[str]:
    """Return the names of the jobs that this server can import, and more names, for a filter."""
    names = set(more)
    with contextlib.suppress(RegistrationError):
        names |= {job.name for job in (await visit.read("list_jobs")).items}
    return sorted(names)
