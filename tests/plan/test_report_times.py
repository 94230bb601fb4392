"""The times of `worker report` add up to the time of the run, whatever happened to it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select

from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.contexts import MakeContext
from worker import JobContext
from worker.attempt import sampler
from worker.attempt.control import NoControl
from worker.batch.throttle import ThrottleContext, Wait
from worker.errors import AttemptReleased
from worker.ledger import Ledger, Sample, StepRecord
from worker.plan.report import RunReport, _add_up, _report_step, make_report
from worker.plan.report_page import bucket_rates, make_page, plot_text
from worker.settings import Settings
from worker.testing.runner import JobRunner
from worker.types import Database

BEGAN = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Store a sample at each boundary."""
    for name in ("_FIRST_SECONDS", "_MIN_SECONDS", "_SHARE"):
        monkeypatch.setattr(sampler, name, 0.0)


def ensure_adds_up(report: RunReport) -> None:
    """Check the sums of a report, and that it can be shown."""
    assert sum(report.time.values()) == pytest.approx(report.seconds, abs=0.02), report.time
    assert all(seconds >= 0 for seconds in report.time.values())
    for step in report.steps:
        assert sum(step.time.values()) == pytest.approx(step.seconds, abs=0.02), step.time
        assert all(point.rows_per_second >= 0 for point in step.rates)
        plot_text(step.rates)
    assert make_page(report)


async def finish(ctx: JobContext, state: str, error: str | None = None) -> None:
    """End a run in the ledger."""
    assert ctx._attempt.ledger_run is not None
    await ctx._attempt.ledger_run.finish(state, error=error)


samples = st.lists(
    st.tuples(
        st.floats(-5, 60),  # the clock of the server may be set back
        st.integers(0, 100),
        st.integers(1, 3),
        st.dictionaries(st.sampled_from(["work", "lock", "pace", "paused"]), st.floats(0, 40)),
    ),
    max_size=12,
)


@given(samples, st.floats(-5, 300), st.booleans(), st.sampled_from(["chunks", "stream", "step", "sleep"]))
def test_times_add_up_for_any_samples(found: list[Any], seconds: float, done: bool, kind: str) -> None:
    at, given_samples = BEGAN, []
    for span, rows, attempt, spent in found:
        at += timedelta(seconds=span)
        given_samples.append(Sample("s", at, attempt, rows, rows, spent))
    step = StepRecord("s", 1, kind, "", [], None, None, 90, 9, None, done)
    report = _report_step(step, given_samples, BEGAN, BEGAN + timedelta(seconds=seconds))
    assert report.seconds == pytest.approx(max(0.0, seconds), abs=1e-6)
    assert sum(report.time.values()) == pytest.approx(report.seconds, abs=0.02)
    assert all(value >= 0 for value in report.time.values())
    assert all(point.rows_per_second >= 0 for point in report.rates)
    assert all(value >= 0 for value in bucket_rates(report.rates, 40))
    total = _add_up([report], report.seconds + 7.0, {"paused": 3.0})
    assert sum(total.values()) == pytest.approx(report.seconds + 7.0, abs=0.02)


@pytest.mark.usefixtures("each_batch")
async def test_time_of_a_durable_step_is_not_work_of_the_next_walk(context: MakeContext, database: Database) -> None:
    await fill_authors(database, 20)
    ctx = context("stepped")

    async def export() -> int:
        await asyncio.sleep(0.3)  # the time that the report has to show
        return 1

    for name in ("first", "second"):
        await ctx.step(f"export {name}", export)
        async for _ in ctx.chunks(select(Author), size=5, name=name):
            pass
        await asyncio.sleep(0.3)
    await finish(ctx, "succeeded")
    report = await make_report(database, "stepped")
    assert report is not None
    ensure_adds_up(report)
    by_name = {step.name: step for step in report.steps}
    assert by_name["export first"].time["work"] >= 0.3
    assert by_name["export second"].time["work"] >= 0.3
    stored = [one for one in await Ledger(database).list_samples("stepped") if one.step == "second"]
    assert sum(sum(one.seconds.values()) for one in stored) <= by_name["second"].seconds + 0.1
    assert report.time["outside of steps"] >= 0.6


async def test_walk_in_ranges_under_way_has_the_time_of_its_batches(context: MakeContext, database: Database) -> None:
    await fill_authors(database, 40)
    ctx = context("ranged")
    seen = 0
    with pytest.raises(ZeroDivisionError):
        async for batch in ctx.chunks(select(Author), size=2, parallel=2):
            await asyncio.sleep(0.1)
            seen += len(batch)
            if seen >= 10:
                raise ZeroDivisionError
    await ctx._attempt.fail()
    report = await make_report(database, "ranged")
    assert report is not None
    ensure_adds_up(report)
    [step] = report.steps
    assert step.rows == 8 and step.seconds >= 0.4, "the ranges, not the step, have the times of the batches"
    assert step.rows_per_second <= 20
    assert report.run.state == "running" and report.time["not sampled"] > 0


class DrainsInWait(NoControl):
    """Its worker drains once a walk has waited for a while."""

    draining = False


class Holds:
    """A throttle that holds a walk after its first batch, until the worker drains."""

    asks_server = False

    def __init__(self, control: DrainsInWait) -> None:
        self._control = control
        self._checks = 0

    async def check(self, context: ThrottleContext) -> Wait | None:
        self._checks += context.rows > 0
        if self._checks == 3:
            self._control.draining = True  # type: ignore[misc]
        return Wait("a test", kind="test") if self._checks else None


async def test_waits_before_an_attempt_ends_are_kept(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "_FIRST_SECONDS", 0.3)  # longer than its waits before the last
    await fill_authors(database, 20)
    control = DrainsInWait()
    ctx = JobRunner(database, settings).context("test", "drained", control=control, throttles=(Holds(control),))
    with pytest.raises(AttemptReleased):
        async for _ in ctx.chunks(select(Author), size=5, name="count"):
            pass
    assert ctx._attempt.ledger_run is not None
    await ctx._attempt.ledger_run.release("waiting", failed=False)
    await ctx._attempt.close()
    report = await make_report(database, "drained")
    assert report is not None
    ensure_adds_up(report)
    assert report.steps[0].time["test"] >= 0.3


@pytest.mark.usefixtures("each_batch")
async def test_run_from_its_start_again_forgets_its_samples(context: MakeContext, database: Database) -> None:
    await fill_authors(database, 20)
    ctx = context("again")
    async for _ in ctx.chunks(select(Author), size=5, name="count"):
        pass
    await finish(ctx, "dead")
    await Ledger(database).retry("again", from_start=True)
    assert await Ledger(database).list_samples("again") == []


async def test_page_shows_hidden_characters(context: MakeContext, database: Database) -> None:
    ctx = context("hostile")
    async for _ in ctx.chunks(select(Author), name="<i>\u202ename"):
        pass
    await finish(ctx, "dead", error="<script>\x1b[31m\u202eevil :fire:\nline")
    report = await make_report(database, "hostile")
    assert report is not None
    ensure_adds_up(report)
    html = make_page(report)
    assert not set("\x1b\u202e") & set(html) and "<script" not in html and "<i>" not in html
    assert "&lt;script&gt;\\x1b[31m\\u202eevil :fire:" in html
