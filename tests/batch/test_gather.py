"""Calls for each row: limited concurrency, stable keys, and no open transaction."""

from __future__ import annotations

import asyncio
import contextlib
import json

import pytest
from sqlalchemy import select, text

from tests.models import Author, Book, authors
from tests.support.contexts import MakeContext
from worker.db.engine import Database
from worker.errors import UsageError


@pytest.fixture
async def rows(context: MakeContext) -> None:
    """Fifty rows."""
    await context().bulk.insert(Author, authors(50))


@pytest.mark.usefixtures("rows")
async def test_calls_are_bounded_and_hold_no_transaction(context: MakeContext, database: Database) -> None:
    now, most = 0, 0
    states: set[str | None] = set()

    async def call(author: Author, row_key: str) -> str:
        nonlocal now, most
        now += 1
        most = max(most, now)
        async with database.session() as session:
            query = text("SELECT state FROM pg_stat_activity WHERE pid = :pid")
            states.add(await session.scalar(query, {"pid": run.driver.raw.get_server_pid()}))
        now -= 1
        return f"{author.name} {row_key}"

    ctx = context("run")
    run = await ctx._attempt.durable_run()
    async for batch in ctx.chunks(select(Author), size=20, lock=False):
        outcomes = await batch.gather(call, concurrency=4)
        assert [outcome.row for outcome in outcomes] == list(batch)
        for outcome in outcomes:
            outcome.row.code = outcome.result or ""
    await ctx._attempt.succeed()
    assert most == 4
    assert states == {"idle"}
    async with database.session() as session:
        codes = (await session.scalars(select(Author.code).order_by(Author.id))).all()
    assert list(codes) == [f"n{n} run:1-chunks:[{n}]" for n in range(1, 51)]


@pytest.mark.usefixtures("rows")
async def test_keys_stay_when_batches_are_other_ones(context: MakeContext) -> None:
    async def call(row: object, row_key: str) -> None:
        keys.append(row_key)
        if failing and len(keys) == 25:
            raise RuntimeError

    by_code = select(Author.region, Author.code).order_by(Author.region, Author.code)
    keys: list[str] = []
    failing = True
    first = context("run")
    with pytest.raises(RuntimeError):
        async for batch in first.stream(by_code, size=20):
            await batch.gather(call, concurrency=1)
    await first._attempt.fail()
    await first._attempt.close()
    before, keys, failing = keys, [], False
    async for batch in context("run").stream(by_code, size=7):
        await batch.gather(call)
    assert len(before) == 25
    assert keys[:5] == before[20:]
    assert json.loads(keys[0].removeprefix("run:1-stream:"))[1].startswith("c")
    assert len({*before, *keys}) == 50


@pytest.mark.usefixtures("rows")
async def test_errors_are_the_batchs_or_collected(context: MakeContext) -> None:
    cancelled = []

    async def call(key: int, row_key: str) -> int:
        if key == 3:
            await asyncio.sleep(0)  # the other calls begin
            raise ValueError("three")
        try:
            await asyncio.sleep(0.01 if collecting else 30)
        except asyncio.CancelledError:
            cancelled.append(key)
            raise
        return key * 2

    collecting = False
    ctx = context()
    with pytest.raises(ValueError, match="three"):
        async for batch in ctx.chunks(select(Author.id), size=10, lock=False):
            await batch.gather(call)
    await ctx._attempt.fail()
    assert sorted(cancelled) == [key for key in range(1, 11) if key != 3]
    collecting = True
    async for batch in context().chunks(select(Author.id), size=10, lock=False):
        outcomes = await batch.gather(call, errors="collect")
        good = [outcome.result for outcome in outcomes if outcome.error is None]
        assert good == [key * 2 for key in batch if key != 3]
        assert [outcome.row for outcome in outcomes if outcome.error] == [key for key in batch if key == 3]


@pytest.mark.usefixtures("rows")
async def test_a_call_that_swallows_its_cancellation_is_the_last_of_its_task(context: MakeContext) -> None:
    called = []

    async def call(key: int, row_key: str) -> None:
        called.append(key)
        if key == 2:
            raise ValueError("two")
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(30)

    ctx = context()
    with pytest.raises(ValueError, match="two"):
        async for batch in ctx.chunks(select(Author.id), size=10, lock=False):
            await batch.gather(call, concurrency=2)
    await ctx._attempt.fail()
    assert called == [1, 2]


@pytest.mark.usefixtures("rows")
async def test_an_open_transaction_is_refused(context: MakeContext) -> None:
    async def call(row: object, row_key: str) -> None:
        pytest.fail("it was called")

    for lock in (True, False):
        ctx = context()
        with pytest.raises(UsageError, match="a transaction is open"):
            async for batch in ctx.chunks(select(Author), lock=lock):
                if not lock:
                    await batch.bulk.insert(Book, [{"author_id": 1, "title": "x"}])
                await batch.gather(call)
        await ctx._attempt.fail()
    ctx = context()
    with pytest.raises(UsageError, match="have no key"):
        async for partition in ctx.stream(select(Author.id), on_restart="start_over"):
            assert partition.first_key is None
            await partition.gather(call)
    await ctx._attempt.fail()
