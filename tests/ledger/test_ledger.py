"""The ledger: runs are listed, released, retried and cancelled."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import select, text

from tests.models import Author, authors
from tests.support.contexts import MakeContext
from tests.support.waiting import until
from worker.attempt.context import JobContext
from worker.db.engine import Database
from worker.errors import AlreadyFinished, FencedOut
from worker.ledger import Ledger, OwnedRun
from worker.ledger.run_connection import RunConnection


async def walk(ctx: JobContext, batches: int) -> OwnedRun:
    """Commit a number of batches of ten rows, and leave the next one open."""
    loop = aiter(ctx.chunks(select(Author), size=10))
    for _ in range(batches + 1):
        await anext(loop)
    await ctx._attempt.fail()
    return await ctx._attempt.durable_run()


@pytest.fixture
async def rows(context: MakeContext) -> None:
    """Fifty rows to walk."""
    await context().bulk.insert(Author, authors(50))


@pytest.mark.usefixtures("rows")
async def test_runs_are_listed_with_the_sums_of_their_steps(context: MakeContext, database: Database) -> None:
    run = await walk(context("one"), 3)
    await walk(context("two"), 1)
    await run.finish("dead", error="no")
    ledger = Ledger(database)
    assert [(one.id, one.rows, one.batches) for one in await ledger.list_runs()] == [("two", 10, 1), ("one", 30, 3)]
    assert [one.id for one in await ledger.list_runs(ids=["one", "none"])] == ["one"]
    assert [one.id for one in await ledger.list_runs(state="dead")] == ["one"]
    assert [one.id for one in await ledger.list_runs(limit=1)] == ["two"]
    assert await ledger.list_runs(job="nobody") == []
    [shown] = await ledger.list_runs(run_id="one")
    assert [(step.name, step.cursor, step.upper_bound) for step in shown.steps] == [("1-chunks", [30], [50])]


@pytest.mark.usefixtures("rows")
async def test_a_dead_owner_is_a_takeover_and_a_failure_is_none(context: MakeContext) -> None:
    first = context("run")
    await walk(first, 1)
    await first._attempt.close()  # without a word: it died
    second = await walk(context("run"), 0)
    assert (second.takeovers, second.attempt) == (1, 1)  # there was progress
    third = await walk(context("run"), 0)
    assert (third.takeovers, third.attempt) == (2, 2)  # and none this time
    assert await third.release("waiting", failed=True) == 3
    fourth = await walk(context("run"), 0)
    assert (fourth.takeovers, fourth.attempt) == (2, 3)


@pytest.mark.parametrize("is_first", [True, False])
async def test_an_owner_that_froze_within_its_claim_does_not_hold_a_takeover_up(
    context: MakeContext, database: Database, is_first: bool
) -> None:
    ledger, spec = Ledger(database), context("run")._attempt._spec()
    if not is_first:
        await (await ledger.claim(spec)).close()
    async with database.engine.connect() as frozen:
        columns = "id, job, queue, payload, arguments, state, fence, attempt, batches_before"
        values = "'run', 'test', 'q', '{}', '[]', 'running', 2, 1, 0"
        claim = f"INSERT INTO worker.run ({columns}) VALUES ({values}) ON CONFLICT (id) DO UPDATE SET fence = 2"
        await frozen.execute(text(claim))  # and no COMMIT
        run = await asyncio.wait_for(ledger.claim(spec), timeout=30)  # idle_in_transaction_session_timeout is 60 s
        assert run.fence == (1 if is_first else 2)
        await run.close()
        await frozen.invalidate()


@pytest.mark.usefixtures("rows")
async def test_checkpoint_with_an_old_fence_rolls_the_batch_back(context: MakeContext, database: Database) -> None:
    replaced = context("run")
    with pytest.raises(FencedOut):
        async for batch in replaced.chunks(select(Author), size=10):
            if batch.number == 2:
                async with database.transaction() as session:
                    await session.execute(text("UPDATE worker.run SET fence = fence + 1"))
                    await session.execute(text("UPDATE worker.step SET fence = fence + 1"))
    await replaced._attempt.close()


@pytest.mark.usefixtures("rows")
async def test_a_connection_that_is_still_in_use_does_not_go_back_to_the_pool(
    context: MakeContext, database: Database
) -> None:
    ctx = context("run")
    run = await ctx._attempt.durable_run()
    raw = run.driver.raw
    await raw.execute("BEGIN")  # like a task that the job has not awaited
    await ctx._attempt.close()
    async with database.engine.connect() as connection:
        assert (await connection.get_raw_connection()).driver_connection is not raw
        await connection.execute(text("SELECT 1"))


@pytest.mark.usefixtures("rows")
async def test_only_runs_that_nobody_touches_are_orphans(context: MakeContext, database: Database) -> None:
    await walk(context("quiet"), 1)
    await walk(context("busy"), 1)
    ended = await walk(context("ended"), 1)
    await ended.finish("succeeded", result="1")
    async with database.transaction() as session:
        await session.execute(text("UPDATE worker.run SET updated_at = now() - interval '1 hour'"))
        await session.execute(
            text("UPDATE worker.step SET updated_at = now() - interval '1 hour' WHERE run_id <> 'busy'")
        )
    found, after = await Ledger(database).find_orphans(idle_seconds=60)
    assert ([spec.id for spec in found], after) == (["quiet"], None)


@pytest.mark.usefixtures("rows")
async def test_a_retry_goes_on_from_the_checkpoint_or_from_the_start(context: MakeContext, database: Database) -> None:
    ledger = Ledger(database)
    run = await walk(context("run"), 3)
    assert await ledger.retry("run", from_start=False) is None  # it has not ended
    await run.finish("dead", error="no")
    with pytest.raises(AlreadyFinished):
        await context("run")._attempt.durable_run()
    spec = await ledger.retry("run", from_start=False)
    assert spec is not None
    again = context("run")
    assert again.rows_done == 0
    run = await walk(again, 0)
    assert (run.rows, run.attempt) == (30, 1)
    await run.finish("dead", error="no")
    await ledger.retry("run", from_start=True)
    assert (await context("run")._attempt.durable_run()).rows == 0


@pytest.mark.usefixtures("rows")
async def test_a_checkpoint_is_a_hot_update(context: MakeContext, database: Database) -> None:
    async def updates() -> tuple[int, int]:
        async with database.session() as session:
            if int(await session.scalar(text("SHOW server_version_num")) or 0) >= 150_000:
                await session.execute(text("SELECT pg_stat_force_next_flush()"))
        query = "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_user_tables WHERE relname = 'step'"
        async with database.session() as session:
            all_, hot = (await session.execute(text(query))).one()
            return all_, hot

    before = await updates()
    ctx = context("run")
    await walk(ctx, 4)
    await ctx._attempt.close()  # its backend reports its updates when it is idle

    async def told() -> bool:
        return (await updates())[0] - before[0] >= 4

    await until(told)
    after = await updates()
    assert after[0] - before[0] == after[1] - before[1]


async def test_closing_a_connection_whose_session_has_ended_raises_nothing(database: Database) -> None:
    """It would hide the error because of which the connection is closed."""
    own = RunConnection("run", await database.engine.connect())
    pid = await own.connection.scalar(text("SELECT pg_backend_pid()"))
    async with database.connection() as other:
        assert await other.scalar(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
    await own.close()
    assert database.connections_in_use == 0
