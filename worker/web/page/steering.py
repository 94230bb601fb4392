"""The views of cron lines, limits and paces, and of the record of events and orders."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from worker.web.bodies import EventListQuery
from worker.web.event_kinds import GROUPS, KINDS
from worker.web.fields import Name, Page, PageQuery, Query
from worker.web.job_views import CronView, JobView
from worker.web.page.failures import list_job_names
from worker.web.page.links import link_target, read_names
from worker.web.page.sentences import describe_last_run, describe_newest_run, list_more
from worker.web.page.visit import Visit
from worker.web.views import EventsView, LimitView, OrderView, OverviewView

#: Kinds of events that a visitor asks for with all runs, short ones as well.
_OF_ALL_RUNS = ("started", "succeeded")


class CronQuery(Query):
    """The cron lines to list."""

    search: Name | None = Field(None, max_length=200, description="Only lines with this text in job or line.")


class EventsPageQuery(EventListQuery):
    """The events to list. Short runs are left out unless the visitor asks for them."""

    brief: Literal["true", "false"] | None = Field(None, description="Whether to list short runs.")  # type: ignore[assignment]


class LimitsQuery(Query):
    """The limits to list."""

    search: Name | None = Field(None, max_length=200, description="Only limits of names with this text.")


async def load_cron(visit: Visit) -> dict[str, Any]:
    """Return the values of `cron.html`."""
    query: CronQuery = visit.query
    lines: list[CronView] = (await visit.read("list_cron")).items
    jobs: Page[JobView] = await visit.read("list_jobs")
    overview: OverviewView = await visit.read("show_overview")
    text = (query.search or "").lower()
    return {
        "lines": [line for line in lines if text in f"{line.job} {line.line}".lower()],
        "paused": set(overview.paused),
        "has_worker": any(worker.state == "running" for worker in overview.workers),
        "notes": {(line.job, line.line): describe_last_run(line) for line in lines},
        "newest": {(line.job, line.line): describe_newest_run(line) for line in lines},
        "with_arguments": {job.name for job in jobs.items if job.arguments.get("properties")},
    }


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
    query: EventsPageQuery = visit.query
    has_brief = query.brief or ("true" if query.event in _OF_ALL_RUNS else "false")
    page: EventsView = await visit.read("list_events", **(query.model_dump() | {"brief": has_brief}))
    jobs = {event.fields["job"] for event in page.items if event.fields.get("job")}
    return {
        "page": page,
        "more": {event.id: list_more(event.fields) for event in page.items},
        "groups": GROUPS,
        "kinds": KINDS,
        "has_brief": has_brief == "true",
        "jobs": await list_job_names(visit, jobs),
    }


async def load_orders(visit: Visit) -> dict[str, Any]:
    """Return the values of `orders.html`."""
    query: PageQuery = visit.query
    page: Page[OrderView] = await visit.read("list_orders", **query.model_dump())
    names = await read_names(visit.backend)
    return {"page": page, "link_target": lambda order, target: link_target(order, target, names)}
