"""A walk that has had its slot for long gives it to runs that wait, and only to them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import select

from tests.models import Author
from tests.support.authors import count_seen, fill_authors
from tests.support.waiting import until_true
from tests.support.workers import with_worker, working
from worker import Client, JobContext, Settings, job
from worker.db.engine import Database
from worker.errors import RegistrationError
from worker.ledger import Ledger
from worker.queue import keys

order: list[Any] = []
gate: dict[str, asyncio.Event] = {}


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Clear the records of the previous test."""
    order.clear()
    gate.clear()
    gate["go"] = asyncio.Event()


async def walk_slowly(ctx: JobContext, name: str) -> int:
    """Count each author once, one a batch, until the gate opens at least 60 batches."""
    async for batch in ctx.chunks(select(Author), size=1):
        for author in batch:
            author.seen += 1
        order.append(name)
        await asyncio.sleep(0.02)
    order.append(f"{name} ends")
    return ctx.attempt


@job(yield_after=0.1)
async def walk(ctx: JobContext, name: str = "walk") -> int:
    """Yield after a tenth of a second."""
    return await walk_slowly(ctx, name)


@job(yield_after=0)
async def keep(ctx: JobContext, name: str = "keep") -> int:
    """Never yield."""
    return await walk_slowly(ctx, name)


@job(yield_after=0.1, priority=5)
async def walk_first(ctx: JobContext, name: str = "first") -> int:
    """Yield to runs of this priority or higher."""
    return await walk_slowly(ctx, name)


@job(yield_after=0.1, concurrency=1)
async def walk_alone(ctx: JobContext, name: str) -> int:
    """Yield to the runs that wait for the place, too."""
    return await walk_slowly(ctx, name)


@job(yield_after=0.1)
async def stream(ctx: JobContext) -> int:
    """Read a result that a restart begins again."""
    async for _ in ctx.stream(
        select(Author.region, Author.name).order_by(Author.name), size=1, on_restart="start_over"
    ):
        order.append("stream")
        await asyncio.sleep(0.02)
    order.append("stream ends")
    return ctx.attempt


@job
async def quick(ctx: JobContext, name: str = "quick") -> None:
    """Use a slot."""
    order.append(name)


@job(priority=9)
async def urgent(ctx: JobContext) -> None:
    """Use a slot."""
    order.append("urgent")


JOBS = (walk, keep, walk_first, walk_alone, stream, quick, urgent)


async def count_yields(redis: Redis) -> int:
    """Return how many runs have yielded, according to the events."""
    events = await redis.xrange(keys.EVENTS)
    return sum(event[b"event"] == b"yielded" for _, event in events)


async def test_a_walk_yields_to_a_run_that_waits_and_ends_behind_it(
    client: Client, fast: Settings, database: Database, redis: Redis
) -> None:
    await fill_authors(database, 100)
    async with working(with_worker(fast, max_jobs=1), *JOBS):
        run = await client.enqueue(walk)
        await until_true(lambda: len(order) > 3)
        await (await client.enqueue(quick)).result(timeout=120)
        assert "walk ends" not in order
        assert await run.result(timeout=120) == 1
    assert order.count("quick") == 1 and order.index("quick") < order.index("walk ends")
    assert await count_seen(database) == {1: 100}
    assert await count_yields(redis) >= 1
    [found] = await Ledger(database).list_runs(run_id=run.id)
    assert (found.attempt, found.takeovers) == (1, 0)


async def test_a_walk_keeps_its_slot_while_nobody_waits(
    client: Client, fast: Settings, database: Database, redis: Redis
) -> None:
    await fill_authors(database, 60)
    async with working(with_worker(fast, max_jobs=1), *JOBS):
        later = await client.enqueue(quick.options(delay=3600))  # it is not due
        assert await (await client.enqueue(walk)).result(timeout=120) == 1
        assert await later.status() == "deferred"
    assert await count_yields(redis) == 0


async def test_a_walk_keeps_its_slot_while_another_one_is_free(
    client: Client, fast: Settings, database: Database, redis: Redis
) -> None:
    await fill_authors(database, 60)
    async with working(with_worker(fast, max_jobs=2), *JOBS):
        run = await client.enqueue(walk)
        for _ in range(5):
            await (await client.enqueue(quick)).result(timeout=120)
        await run.result(timeout=120)
    assert await count_yields(redis) == 0


@pytest.mark.parametrize("task", [keep, stream], ids=["yield_after=0", "not resumable"])
async def test_a_walk_that_must_not_or_cannot_stop_keeps_its_slot(
    client: Client, fast: Settings, database: Database, redis: Redis, task: Any
) -> None:
    await fill_authors(database, 60)
    async with working(with_worker(fast, max_jobs=1), *JOBS):
        await client.enqueue(task)
        await until_true(lambda: order)
        await (await client.enqueue(quick)).result(timeout=120)
    assert order[-1] == "quick"
    assert await count_yields(redis) == 0


async def test_as_many_walks_yield_as_runs_wait(
    client: Client, fast: Settings, database: Database, redis: Redis
) -> None:
    await fill_authors(database, 200)
    async with working(with_worker(fast, max_jobs=4), *JOBS):
        runs = [await client.enqueue(walk, name=f"walk {n}") for n in range(4)]
        await until_true(lambda: len(set(order)) == 4)
        await (await client.enqueue(quick)).result(timeout=120)
        yields = await count_yields(redis)
        for run in runs:
            await run.cancel()
    assert yields <= 1  # it is written within half a second


async def test_a_walk_with_a_priority_yields_only_to_as_high_a_one(
    client: Client, fast: Settings, database: Database, redis: Redis
) -> None:
    await fill_authors(database, 120)
    async with working(with_worker(fast, max_jobs=1), *JOBS):
        run = await client.enqueue(walk_first)
        await until_true(lambda: order)
        low = await client.enqueue(quick)
        await until_true(lambda: len(order) > 60)  # more than a second has passed
        assert "quick" not in order
        await (await client.enqueue(urgent)).result(timeout=120)
        assert "first ends" not in order
        await run.result(timeout=120)
        await low.result(timeout=120)
    assert await count_yields(redis) == 1


@pytest.mark.long
async def test_a_walk_yields_its_place_under_a_limit(
    client: Client, fast: Settings, database: Database, redis: Redis
) -> None:
    await fill_authors(database, 100)
    async with working(with_worker(fast, max_jobs=4), *JOBS):
        first = await client.enqueue(walk_alone, name="one")
        await until_true(lambda: len(order) > 3)
        second = await client.enqueue(walk_alone, name="two")
        await until_true(lambda: "two" in order)
        assert "one ends" not in order
        assert await asyncio.gather(first.result(timeout=120), second.result(timeout=120)) == [1, 1]
    assert await count_seen(database) == {2: 100}


async def test_a_walk_in_a_full_queue_with_strict_order_ignores_lighter_queues(
    client: Client, fast: Settings, database: Database, redis: Redis
) -> None:
    await fill_authors(database, 100)
    both = with_worker(fast, max_jobs=1, queues={"arq:queue": 2, "arq:light": 1}, queue_order="strict")
    async with working(both, *JOBS):
        run = await client.enqueue(walk)
        await until_true(lambda: order)
        light = await client.enqueue(quick.options(queue="arq:light"))
        await run.result(timeout=120)
        await light.result(timeout=120)
    assert await count_yields(redis) == 0


@pytest.mark.long
async def test_runs_of_a_queue_that_is_full_do_not_count(
    client: Client, fast: Settings, database: Database, redis: Redis
) -> None:
    await fill_authors(database, 100)
    queues = {"arq:queue": 1, "arq:heavy": 1}
    limited = with_worker(fast, max_jobs=2, queues=queues, queue_limits={"arq:heavy": 1})
    async with working(limited, *JOBS):
        await client.enqueue(keep.options(queue="arq:heavy"))
        run = await client.enqueue(walk)
        await until_true(lambda: {"keep", "walk"} <= set(order))
        await client.enqueue(quick.options(queue="arq:heavy"))
        await until_true(lambda: "keep ends" in order or "walk ends" in order)
        await run.result(timeout=120)
    assert await count_yields(redis) == 0


async def test_yield_after_is_a_number_of_seconds() -> None:
    for wrong in (-1, float("nan"), "5", True):
        with pytest.raises(RegistrationError, match="yield_after"):
            job(yield_after=wrong)(quick.function)  # type: ignore[arg-type]
