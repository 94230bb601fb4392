"""The figures of a walk with several hands: those of the run are of all hands, those of a helper are its own."""

from __future__ import annotations

import asyncio
import re

import pytest
from sqlalchemy import select

from tests.faults.conftest import fill_targets, mirror
from tests.models import Target
from tests.support.waiting import until
from tests.support.workers import working
from worker import Client, JobContext, Settings, job
from worker.db.engine import Database


@job
async def touch_together(ctx: JobContext) -> int:
    """Touch each row by two hands. A helper is in its first batch until it is told to go on."""
    async for batch in ctx.chunks(select(Target), size=10, parallel=2):
        for target in batch:
            target.touched = True
        if ctx.is_helper:
            await ctx.redis.set("helps", 1)
            while not await ctx.redis.exists("go on"):
                await asyncio.sleep(0.01)
    return ctx.rows_done


async def test_a_run_that_waits_for_its_pace_shows_the_rows_of_its_other_hands(
    fast: Settings, client: Client, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await fill_targets(database, 400)
    await client.pace("together", rows_per_second=0.01)
    with caplog.at_level("INFO", logger="longhaul"):
        async with working(fast, touch_together):
            run = await client.enqueue(touch_together.options(id="together"))

            async def shown() -> dict[str, str]:
                return {key: str(value) for key, value in (await mirror(client.redis, run.id)).items()}

            async def waits() -> bool:
                values = await shown()
                helps = await client.redis.exists("helps")
                return bool(helps) and (values.get("rows"), values.get("throttled_by")) == ("1", "pace")

            await until(waits)
            before = await shown()
            await client.redis.set("go on", 1)

            async def has_both() -> bool:
                return (await shown()).get("rows") == "2"

            await until(has_both)
            after = await shown()
            assert after["throttled_by"] == "pace"
            assert [after[name] for name in ("batches", "batch_size", "last_key")] == [
                before[name] for name in ("batches", "batch_size", "last_key")
            ]
            await client.pace("together", rows_per_second=None)
            assert await run.result(timeout=120) == 400
    ended = {
        found[1]: int(found[2])
        for record in caplog.records
        if (found := re.search(r"attempt ended job=\S+ run=(\S+) .*rows=(\d+)", record.getMessage()))
    }
    [helper] = [rows for run_id, rows in ended.items() if run_id != run.id]
    assert ended[run.id] == 400
    assert 10 <= helper < 400
