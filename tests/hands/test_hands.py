"""Walks with `parallel`: several runs walk the ranges of one step."""

from __future__ import annotations

import asyncio
import json

from sqlalchemy import select, text

from tests.faults.conftest import effects, fill_targets, ledger_row, mirror
from tests.models import Target
from tests.support.command_line import CommandLine
from tests.support.waiting import until
from tests.support.workers import with_worker, working
from worker import Client, JobContext, Settings, job
from worker.db.engine import Database


@job(concurrency=1)
async def touch_together(ctx: JobContext, hands: int, size: int = 20, pause: float = 0.0) -> dict[str, int]:
    """Touch each row by several hands; count the calls around the loop."""
    await ctx.redis.incr(f"before:{ctx.run_id}")
    await ctx.redis.sadd(f"enqueued:{ctx.run_id}", ctx.enqueued_at.isoformat())
    async for batch in ctx.chunks(select(Target), size=size, parallel=hands):
        for target in batch:
            target.touched = True
        await ctx.redis.sadd(f"hands:{ctx.run_id}", str(ctx.is_helper))
        await asyncio.sleep(pause)
    await ctx.redis.incr(f"after:{ctx.run_id}")
    return {"rows": ctx.rows_done}


async def ranges(database: Database, run_id: str) -> list[tuple[int, bool, str]]:
    """Return rows, end and owner of each range."""
    async with database.session() as session:
        statement = "SELECT rows, done, owner FROM worker.step_range WHERE run_id = :id ORDER BY number"
        return [tuple(row) for row in await session.execute(text(statement), {"id": run_id})]


async def test_hands_walk_each_row_once_and_the_run_returns_the_sum(
    fast: Settings, client: Client, database: Database
) -> None:
    await fill_targets(database, 1_000)
    async with (
        working(with_worker(fast, name="a"), touch_together),
        working(with_worker(fast, name="b"), touch_together),
    ):
        run = await client.enqueue(touch_together, hands=3, pause=0.01)
        assert await run.result(timeout=120) == {"rows": 1_000}
    assert await effects(database) == {1: 1_000}
    found = await ranges(database, run.id)
    assert len(found) in (33, 48)  # by the histogram, if the table was analyzed meanwhile
    assert all(done for _, done, _ in found)
    assert {rows for rows, _, _ in found} <= {20, 21, 30, 40}
    assert len({owner for _, _, owner in found}) == 3
    row = await ledger_row(database, run.id)
    assert row.state == "succeeded"
    assert int(await client.redis.get(f"before:{run.id}") or 0) == 3
    assert int(await client.redis.get(f"after:{run.id}") or 0) == 1
    assert await client.redis.scard(f"enqueued:{run.id}") == 1
    async with database.session() as session:
        states = await session.execute(text("SELECT state, count(*) FROM worker.run GROUP BY state"))
        assert [tuple(state) for state in states] == [("succeeded", 3)]


@job
async def touch_some(ctx: JobContext) -> int:
    """Touch rows by two hands, until the run itself has had enough."""
    async for batch in ctx.chunks(select(Target), size=10, parallel=2):
        for target in batch:
            target.touched = True
        await ctx.redis.sadd(f"walking:{ctx.run_id}", str(ctx.is_helper))
        if not ctx.is_helper and await ctx.redis.scard(f"walking:{ctx.run_id}") == 2:
            break
        await asyncio.sleep(0.01)
    async with ctx.transaction():  # ends the loop
        return ctx.rows_done


async def test_a_break_of_the_run_ends_the_loop_for_all_hands(
    fast: Settings, client: Client, database: Database
) -> None:
    await fill_targets(database, 5_000)
    async with working(fast, touch_some):
        run = await client.enqueue(touch_some)
        rows = await run.result(timeout=120)

        async def all_ended() -> bool:
            async with database.session() as session:
                unfinished = "SELECT count(*) FROM worker.run WHERE finished_at IS NULL"
                return await session.scalar(text(unfinished)) == 0

        await until(all_ended)
    assert 0 < rows < 5_000
    assert await effects(database) == {1: rows, 0: 5_000 - rows}


async def test_hands_and_ranges_are_shown_by_mirror_and_command_line(
    fast: Settings, client: Client, database: Database, cli: CommandLine
) -> None:
    await fill_targets(database, 2_000)
    async with working(fast, touch_together):
        run = await client.enqueue(touch_together, hands=2, pause=0.04)

        async def shown() -> dict[str, str]:
            found = await mirror(client.redis, run.id)
            return found if found.get("hands") == "2" and int(found.get("ranges_done", 0)) > 0 else {}

        seen = await until(shown)
        assert seen["ranges"] == "32"
        [helper] = [key.decode() async for key in client.redis.scan_iter("worker:run:*:hand-2:*")]
        assert (await client.redis.hget(helper, "helps")).decode() == run.id
        assert await run.result(timeout=120) == {"rows": 2_000}
    text_ = (await cli("runs", "show", run.id)).stdout
    assert "1-chunks: 32 of 32 ranges done" in text_
    assert "the run itself" in text_
    assert "1-chunks:hand-2:1" in text_
    found = json.loads((await cli("runs", "show", run.id, "--json")).stdout)
    assert sum(each["rows"] for each in found["ranges"]) == found["rows"] == 2_000
    listed = (await cli("runs")).stdout
    assert "hand-2" not in listed


async def test_a_run_without_a_free_slot_walks_alone(fast: Settings, client: Client, database: Database) -> None:
    await fill_targets(database, 200)
    async with working(with_worker(fast, max_jobs=1), touch_together):
        run = await client.enqueue(touch_together, hands=4)
        assert await run.result(timeout=120) == {"rows": 200}
    assert await effects(database) == {1: 200}
    assert {owner for _, _, owner in await ranges(database, run.id)} == {run.id}
    assert await client.redis.smembers(f"hands:{run.id}") == {b"False"}
    assert int(await client.redis.get(f"before:{run.id}") or 0) == 1
