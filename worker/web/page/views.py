"""The table of views: routing, navigation and keys are made of it."""

from __future__ import annotations

from worker.web.bodies import DeadLettersQuery, OutboxQuery, QuarantineQuery, RunsQuery
from worker.web.fields import PageQuery
from worker.web.page import failures, steering
from worker.web.page.jobs import JobsQuery, load_job, load_jobs, submit_job
from worker.web.page.overview import load_overview
from worker.web.page.run import RunPageQuery, load_run
from worker.web.page.runs import load_runs
from worker.web.page.visit import View

VIEWS: tuple[View, ...] = (
    View("overview", "/", load_overview, menu="Overview", go="o", seconds=2.0),
    View("runs", "/page/runs", load_runs, query=RunsQuery, menu="Runs", go="r"),
    View("run", "/page/runs/{run_id}", load_run, query=RunPageQuery, of="runs", watch="run", seconds=3.0),
    View("jobs", "/page/jobs", load_jobs, query=JobsQuery, menu="Jobs", go="j"),
    View("job", "/page/jobs/{job}", load_job, of="jobs", submit=submit_job),
    View("cron", "/page/cron", steering.load_cron, query=steering.CronQuery, menu="Cron", go="c"),
    View("dead", "/page/dead-letters", failures.load_dead, query=DeadLettersQuery, menu="Dead letters", go="d"),
    View("quarantine", "/page/quarantine", failures.load_quarantine, query=QuarantineQuery, menu="Quarantine", go="q"),
    View("limits", "/page/limits", steering.load_limits, query=steering.LimitsQuery, menu="Limits", go="l"),
    View("outbox", "/page/outbox", failures.load_outbox, query=OutboxQuery, menu="Outbox", go="b"),
    View("events", "/page/events", steering.load_events, query=steering.EventsPageQuery, menu="Events", go="e"),
    View("orders", "/page/audit", steering.load_orders, query=PageQuery, menu="Orders", go="a"),
)
