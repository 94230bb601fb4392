"""Deadlines of runs."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert, select, text

from tests.models import Author, authors
from tests.support.workers import working
from worker import Client, InvalidArguments, JobContext, JobFailed, Settings, job
from worker.db.engine import Database

pytestmark = pytest.mark.usefixtures("database")


seen: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    """Clear the records of the previous test."""
    seen.clear()
    seen.update(tries=[], go=asyncio.Event(), begun=asyncio.Event())


@job(backoff=0)
async def wait_for_go(ctx: JobContext) -> str:
    """Wait."""
    seen["tries"].append(ctx.attempt)
    seen["begun"].set()
    await seen["go"].wait()
    return "gone"


@job(backoff=0)
async def walk_slowly(ctx: JobContext) -> int:
    """Walk, and wait in the second batch."""
    async for _ in ctx.chunks(select(Author), size=10):
        seen["tries"].append(ctx.rows_done)
        if ctx.rows_done:
            await seen["go"].wait()
    return ctx.rows_done


async def test_a_run_that_has_not_ended_by_its_deadline_is_cancelled_and_not_tried_again(
    fast: Settings, client: Client
) -> None:
    run = await client.enqueue(wait_for_go.options(deadline=3))
    async with working(fast, wait_for_go):
        with pytest.raises(JobFailed, match="its deadline has passed: cancelled"):
            await run.result(timeout=120)
    assert seen["tries"] == [1]


async def test_a_walk_has_a_deadline_too_and_keeps_what_it_has_committed(
    fast: Settings, client: Client, database: Database
) -> None:
    async with database.transaction() as session:
        await session.execute(insert(Author), authors(30))
    run = await client.enqueue(walk_slowly.options(deadline=datetime.now(UTC) + timedelta(seconds=3)))
    async with working(fast, walk_slowly):
        with pytest.raises(JobFailed, match="its deadline has passed"):
            await run.result(timeout=120)
    assert seen["tries"] == [0, 10]
    async with database.session() as session:
        state, rows = (
            await session.execute(text("SELECT state, rows FROM worker.run JOIN worker.step ON run_id = id"))
        ).one()
    assert (state, rows) == ("dead", 10)


async def test_a_run_whose_deadline_has_passed_is_not_begun(fast: Settings, client: Client) -> None:
    run = await client.enqueue(wait_for_go.options(deadline=datetime.now(UTC) - timedelta(seconds=1)))
    in_time = await client.enqueue(wait_for_go.options(deadline=60, expires=datetime.now(UTC) + timedelta(seconds=60)))
    seen["go"].set()
    async with working(fast, wait_for_go):
        with pytest.raises(JobFailed, match="its deadline has passed; it was not begun"):
            await run.result(timeout=120)
        assert await in_time.result(timeout=120) == "gone"
    assert seen["tries"] == [1]


def test_moments_without_a_zone_are_refused() -> None:
    for name in ("deadline", "expires"):
        with pytest.raises(InvalidArguments, match=f"{name}=.* has no time zone"):
            wait_for_go.options(**{name: datetime(2030, 1, 1)})
    with pytest.raises(InvalidArguments, match="a call takes no deadline="):
        wait_for_go.options(deadline=5).call()
