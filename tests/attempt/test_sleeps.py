"""`ctx.sleep` and `ctx.sleep_until`."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sqlalchemy import text

from tests.attempt.step_functions import calls, note
from tests.support.contexts import MakeContext
from tests.support.waiting import until_true
from tests.support.workers import with_worker, working
from worker import Client, JobContext, Settings, job
from worker.db.engine import Database
from worker.errors import AttemptReleased, UsageError
from worker.ledger import Ledger


@job
async def sleep_between(ctx: JobContext, seconds: float) -> list[int]:
    """Note the attempt before and behind a sleep."""
    calls.append("called")
    await ctx.step("before", note, "before")
    await ctx.sleep(seconds)
    await ctx.step("behind", note, "behind")
    if calls.count("called") == 2:
        raise ValueError("once more: it does not sleep again")
    return [ctx.attempt, calls.count("called")]


@job
async def quick(ctx: JobContext) -> None:
    """Use the slot."""
    calls.append("quick")


async def test_a_sleep_gives_its_slot_back_and_costs_no_attempt(
    client: Client, fast: Settings, database: Database
) -> None:
    async with working(with_worker(fast, max_jobs=1), sleep_between, quick):
        began = datetime.now(UTC)
        run = await client.enqueue(sleep_between, seconds=1.5)
        await until_true(lambda: "before" in calls)
        await (await client.enqueue(quick)).result(timeout=120)
        assert await run.result(timeout=120) == [1, 3]  # the error counted none either: a step had been finished
        assert datetime.now(UTC) - began >= timedelta(seconds=1.5)
    assert calls == ["called", "before", "quick", "called", "behind", "called"]
    [found] = await Ledger(database).list_runs(run_id=run.id)
    assert [(step.name, step.kind, step.done) for step in found.steps] == [
        ("before", "step", True),
        ("sleep-1", "sleep", True),
        ("behind", "step", True),
    ]


async def test_a_restart_sleeps_only_for_the_rest(database: Database, context: MakeContext) -> None:
    with pytest.raises(AttemptReleased) as first:
        await context("run").sleep(3600)
    assert 3500 < first.value.delay_seconds <= 3600
    async with database.connection() as connection:
        await connection.execute(
            text(
                "UPDATE worker.step "
                "SET result = to_json((result::json #>> '{}')::timestamptz - interval '3000 s')::text"
            )
        )
    with pytest.raises(AttemptReleased) as second:
        await context("run").sleep(3600)
    assert 500 < second.value.delay_seconds <= 600


async def test_a_sleep_until_a_moment_that_has_passed_goes_on(database: Database, context: MakeContext) -> None:
    ctx = context()
    await ctx.sleep_until(datetime.now(UTC) - timedelta(days=1))
    await ctx.sleep_until(datetime.min.replace(tzinfo=timezone(timedelta(hours=14))))
    await ctx.sleep(0)
    assert await ctx.step("behind", note, 1) == 1


@pytest.mark.parametrize("moment", [datetime(2026, 1, 1), datetime.max, "tomorrow", None])
async def test_a_moment_without_a_time_zone_is_refused(database: Database, context: MakeContext, moment: Any) -> None:
    with pytest.raises(UsageError, match=r"time zone|seconds from 0"):
        await context().sleep_until(moment)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 1e12, True, "5", None])
async def test_a_sleep_of_no_number_of_seconds_is_refused(
    database: Database, context: MakeContext, seconds: Any
) -> None:
    with pytest.raises(UsageError, match="give seconds from 0 to 3660 days"):
        await context().sleep(seconds)
