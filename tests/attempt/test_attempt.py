"""`Attempt`: its reaction to errors that a job swallows, and its reports to the worker."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import delete, select, text

from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.contexts import MakeContext
from worker import JobContext, LonghaulError, job
from worker.attempt.control import NoControl
from worker.batch import Progress
from worker.batch.throttle import Wait
from worker.errors import AttemptReleased, UnsupportedStatement
from worker.testing.runner import JobRunner
from worker.types import Database


@job
async def swallow_a_walk(ctx: JobContext) -> int:
    """Catch the error of a loop that cannot begin."""
    try:
        async for _ in ctx.chunks(select(Author.id), size=10, by=Author.name):
            pass
    except UnsupportedStatement:
        pass
    return ctx.rows_done


@job
async def swallow_a_sweep(ctx: JobContext) -> int:
    """Catch the error of a sweep."""
    with suppress(Exception):
        await ctx.sweep(delete(Author).where(text("nonsense = 1")), size=10)
    return ctx.rows_done


@pytest.mark.parametrize("swallow", [swallow_a_walk, swallow_a_sweep])
async def test_an_error_at_the_beginning_of_a_loop_cannot_be_swallowed(
    database: Database, run_job: JobRunner, swallow: Any
) -> None:
    await fill_authors(database, 20)
    with pytest.raises(LonghaulError, match=r"at its beginning|an exception ended the loop"):
        await run_job(swallow)


class Listening(NoControl):
    """A worker that records reports, and returns operator commands."""

    def __init__(self, order: Any = None, *, draining: bool = False) -> None:
        self._order = order
        self._draining = draining
        self.heard: list[tuple[str, Any]] = []

    @property
    def draining(self) -> bool:
        return self._draining

    async def order(self, run_id: str, job: str) -> Any:
        return self._order

    def report(self, progress: Progress, rows: int) -> None:
        self.heard.append(("rows", (progress.rows, rows)))

    def throttled(self, wait: Wait | None, since: datetime) -> None:
        self.heard.append(("wait", wait.reason if wait else None))


async def test_control_gets_values_of_progress(database: Database, context: MakeContext) -> None:
    await fill_authors(database, 5)
    control = Listening()
    ctx = context(control=control)
    async for _ in ctx.chunks(select(Author.id), size=2):
        pass
    assert control.heard == [("rows", (2, 2)), ("rows", (4, 4)), ("rows", (5, 5))]
    ctx.progress(7, 9)
    assert control.heard[-1][0] == "rows"


@pytest.mark.parametrize(
    ("control", "reason"), [(Listening("pause"), "pause"), (Listening(draining=True), "drain")], ids=["pause", "drain"]
)
async def test_a_boundary_releases_the_run_with_a_reason(
    database: Database, context: MakeContext, control: Listening, reason: str
) -> None:
    await fill_authors(database, 5)
    with pytest.raises(AttemptReleased) as released:
        async for _ in context(control=control).chunks(select(Author.id), size=2):
            pass
    assert released.value.reason == reason
