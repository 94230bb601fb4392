"""`worker report`: rows, rate and time by reason, from the samples in the ledger."""

from __future__ import annotations

import asyncio
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.command_line import CommandLine, error_line
from tests.support.contexts import MakeContext
from worker.attempt import sampler
from worker.ledger.owned_run import MOST_SAMPLES
from worker.plan.report import RatePoint, make_report
from worker.plan.report_page import bucket_rates, make_page, plot_text
from worker.settings import Settings
from worker.testing.runner import JobRunner
from worker.types import Database


async def walk(context: MakeContext, run_id: str, **options: Any) -> Any:
    ctx = context(run_id)
    async for batch in ctx.chunks(select(Author), size=5, name="<b>count</b>", **options):
        for author in batch:
            author.seen += 1
    return ctx


@pytest.fixture
def each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Store a sample at each boundary."""
    for name in ("_FIRST_SECONDS", "_MIN_SECONDS", "_SHARE"):
        monkeypatch.setattr(sampler, name, 0.0)


@pytest.mark.usefixtures("each_batch")
async def test_report_has_rows_rate_and_time(
    context: MakeContext, database: Database, cli: CommandLine, tmp_path: Path
) -> None:
    await fill_authors(database, 50)
    ctx = await walk(context, "run-1")
    await ctx._attempt.ledger_run.finish("succeeded", result="50")
    report = await make_report(database, "run-1")
    assert report is not None
    [step] = report.steps
    assert (step.rows, step.batches, step.is_done) == (50, 10, True)
    assert [point.rows for point in step.rates][-1] == 50 and len(step.rates) >= 9
    assert step.time["work"] > 0
    assert sum(step.time.values()) == pytest.approx(step.seconds, abs=0.1)
    shown = await cli("report", "run-1")
    assert shown.returncode == 0 and "50 rows in 10 batches" in shown.stdout and "work" in shown.stdout
    assert json.loads((await cli("report", "run-1", "--json")).stdout)["steps"][0]["rows"] == 50
    page = tmp_path / "report.html"
    assert (await cli("report", "run-1", "--html", str(page))).returncode == 0
    html = page.read_text(encoding="utf-8")
    assert "<svg" in html and "<b>count" not in html and "&lt;b&gt;count" in html
    assert "http://" not in html and "https://" not in html and "<script" not in html
    HTMLParser().feed(html)
    missing = await cli("report", "no-such-run")
    assert missing.returncode == 1 and "no run 'no-such-run'" in error_line(missing)
    unwritable = await cli("report", "run-1", "--html", str(tmp_path / "no" / "file.html"))
    assert unwritable.returncode == 1 and "cannot write" in error_line(unwritable)


@pytest.mark.usefixtures("each_batch")
async def test_report_tells_waits_by_kind_from_work(settings: Settings, database: Database) -> None:
    await fill_authors(database, 20)
    throttle = settings.throttle.model_copy(update={"max_rows_per_second": 40.0})
    ctx = JobRunner(database, settings.model_copy(update={"throttle": throttle})).context("test", "paced")
    async for _ in ctx.chunks(select(Author), size=5, name="count"):
        pass
    await ctx._attempt.close()
    report = await make_report(database, "paced")
    assert report is not None
    assert report.steps[0].time["pace"] > 0.1


@pytest.mark.usefixtures("each_batch")
async def test_report_tells_locks_from_work(
    context: MakeContext, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "_PROBE_SECONDS", 0.05)
    await fill_authors(database, 20)
    walking: asyncio.Task[Any] | None = None
    async with database.transaction() as session:
        await session.execute(select(Author).where(Author.id == 7).with_for_update())
        walking = asyncio.create_task(walk(context, "locked"))
        async with database.session() as other:
            waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            while not await other.scalar(text(waiting)):
                await other.rollback()  # a transaction sees the sessions as they were at its first look
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)  # the time that the report has to show
    await walking
    report = await make_report(database, "locked")
    assert report is not None
    assert report.steps[0].time["lock"] >= 0.1


@pytest.mark.usefixtures("each_batch")
async def test_samples_are_thinned_and_keep_their_times(context: MakeContext, database: Database) -> None:
    await fill_authors(database, 10)
    ctx = await walk(context, "long")
    run = ctx._attempt.ledger_run
    async with database.transaction() as session:
        await session.execute(text("DELETE FROM worker.sample"))
    for number in range(MOST_SAMPLES + 100):
        await run.add_sample("<b>count</b>", {"work": 1.0, "pace" if number % 2 else "lock": 0.5})
    async with database.session() as session:
        found = await session.execute(text("SELECT seconds FROM worker.sample ORDER BY id"))
        samples = [row.seconds for row in found]
    assert MOST_SAMPLES / 2 <= len(samples) <= MOST_SAMPLES
    assert sum(one.get("work", 0) for one in samples) == MOST_SAMPLES + 100
    assert sum(one.get("pace", 0) for one in samples) == (MOST_SAMPLES + 100) / 4


@pytest.mark.usefixtures("each_batch")
async def test_time_between_two_attempts_is_not_work(context: MakeContext, database: Database) -> None:
    await fill_authors(database, 20)
    first = context("twice")
    with pytest.raises(ZeroDivisionError):
        async with first.chunks(select(Author), size=5, name="count") as batches:
            async for batch in batches:
                if batch.number == 3:
                    raise ZeroDivisionError
    await first._attempt.close()
    async with database.transaction() as session:
        for table, column in (("sample", "at"), ("step", "started_at"), ("step", "updated_at")):
            await session.execute(text(f"UPDATE worker.{table} SET {column} = {column} - interval '1 hour'"))
    async for _ in context("twice").chunks(select(Author), size=5, name="count"):
        pass
    report = await make_report(database, "twice")
    assert report is not None
    assert report.steps[0].time["between attempts"] == pytest.approx(3600, abs=60)
    assert report.steps[0].time["work"] < 60


async def test_walk_stores_few_samples(context: MakeContext, database: Database) -> None:
    await fill_authors(database, 50)
    await walk(context, "brief")
    async with database.session() as session:
        assert await session.scalar(text("SELECT count(*) FROM worker.sample")) <= 5


def test_plot_has_the_mean_rate_of_equal_spans() -> None:
    rates = [RatePoint(1.0, 10, 10.0), RatePoint(4.0, 100, 30.0)]
    assert bucket_rates(rates, 4) == pytest.approx([10.0, 30.0, 30.0, 30.0])
    assert plot_text(rates, 4) == "▃███"
    assert plot_text([]) == "" and make_page is not None
