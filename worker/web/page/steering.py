"""The views of cron lines, limits and paces, and of the record of events and orders."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import Field

from worker.web.bodies import EventListQuery
from worker.web.fields import Name, PageQuery, Query
from worker.web.page.failures import list_job_names
from worker.web.page.visit import Visit
from worker.web.views import CronView, LimitView, OverviewView

#: A due time that has no run this long after it was missed: no worker was there.
_LATE = timedelta(minutes=2)
_KINDS = (
    *("started", "resumed", "retry", "succeeded", "incomplete", "dead", "cancelled", "paused", "drained", "yielded"),
    *("asleep", "stalled", "lost", "ordered", "worker_started", "worker_stopped"),
)


class CronQuery(Query):
    """The cron lines to list."""

    search: Name | None = Field(None, max_length=200, description="Only lines with this text in job or line.")


class LimitsQuery(Query):
    """The limits to list."""

    search: Name | None = Field(None, max_length=200, description="Only limits of names with this text.")


async def load_cron(visit: Visit) -> dict[str, Any]:
    """Return the values of `cron.html`."""
    query: CronQuery = visit.query
    lines: list[CronView] = (await visit.read("list_cron")).items
    overview: OverviewView = await visit.read("show_overview")
    text = (query.search or "").lower()
    return {
        "lines": [line for line in lines if text in f"{line.job} {line.line}".lower()],
        "paused": set(overview.paused),
        "has_worker": any(worker.state == "running" for worker in overview.workers),
        "verdicts": {(line.job, line.line): _judge(line) for line in lines},
    }


def _judge(line: CronView) -> str:
    """Return what became of the last due time of a line, in a word of its own."""
    if line.last_at is None:
        return "never"
    if line.last_state in ("dead", "cancelled", "incomplete"):
        return "failed"
    if line.last_state in ("succeeded", "running"):
        return line.last_state
    if line.last_state in ("waiting", "deferred") and datetime.now(UTC) - line.last_at > _LATE:
        return "late"
    return line.last_state or "unknown"


async def load_limits(visit: Visit) -> dict[str, Any]:
    """Return the values of `limits.html`."""
    query: LimitsQuery = visit.query
    limits: list[LimitView] = (await visit.read("list_limits")).items
    overview: OverviewView = await visit.read("show_overview")
    jobs = await list_job_names(visit, set())
    text = (query.search or "").lower()
    return {
        "limits": [one for one in limits if text in one.name.lower()],
        "jobs": set(jobs),
        "queues": {queue.name for queue in overview.queues},
        "names": [*jobs, *(queue.name for queue in overview.queues)],
        "walks": [run for run in overview.runs if run.state == "running" and run.in_ledger],
        "paused": overview.paused,
    }


async def load_events(visit: Visit) -> dict[str, Any]:
    """Return the values of `events.html`."""
    query: EventListQuery = visit.query
    page = await visit.read("list_events", **query.model_dump())
    jobs = {event.fields["job"] for event in page.items if event.fields.get("job")}
    return {"page": page, "kinds": _KINDS, "jobs": await list_job_names(visit, jobs)}


async def load_orders(visit: Visit) -> dict[str, Any]:
    """Return the values of `orders.html`."""
    query: PageQuery = visit.query
    return {"page": await visit.read("list_orders", **query.model_dump())}
