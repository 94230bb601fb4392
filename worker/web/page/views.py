"""The table of views: routing, navigation and keys are made of it."""

from __future__ import annotations

from worker.web.bodies import RunsQuery
from worker.web.page.overview import load_overview
from worker.web.page.run import RunPageQuery, load_run
from worker.web.page.runs import load_runs
from worker.web.page.visit import View

VIEWS: tuple[View, ...] = (
    View("overview", "/", load_overview, menu="Overview", go="o", seconds=2.0),
    View("runs", "/page/runs", load_runs, query=RunsQuery, menu="Runs", go="r"),
    View("run", "/page/runs/{run_id}", load_run, query=RunPageQuery, of="runs", watch="run"),
)
