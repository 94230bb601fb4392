"""A claim whose outcome the worker does not know: Redis and ledger end the run alike, and its session is not reused."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.faults.conftest import fill_targets
from tests.models import Target
from tests.support.waiting import until, until_true
from tests.support.workers import with_worker, working
from worker import Client, JobCancelled, JobContext, JobFailed, Settings, job
from worker.db.engine import Database
from worker.ledger import Ledger, RunSpec, owned_run

_CALLS: list[str] = []


@job(max_attempts=1)
async def walk_once(ctx: JobContext) -> int:
    """Walk, with one attempt."""
    _CALLS.append("walk")
    async for batch in ctx.chunks(select(Target), size=50):
        for target in batch:
            target.touched = True
    return ctx.rows_done


@job
async def one_step(ctx: JobContext) -> None:
    """Do one step."""
    await ctx.step("one", _note_step)


async def _note_step() -> None:
    _CALLS.append("step")


@job
async def forgives(ctx: JobContext) -> str:
    """Catch the error of the claim, and succeed."""
    try:
        await ctx.step("one", _note_step)
    except Exception:
        return "forgiven"
    return "done"


@job
async def fails_first(ctx: JobContext) -> int:
    """Fail in the third batch of the first attempt."""
    async for batch in ctx.chunks(select(Target), size=5):
        for target in batch:
            target.touched = True
        if batch.number == 3 and not _CALLS:
            _CALLS.append("failed")
            raise RuntimeError("the first attempt fails")
    return ctx.rows_done


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    _CALLS.clear()


async def state_of(database: Database, run_id: str) -> str | None:
    async with database.session() as session:
        statement = text("SELECT state FROM worker.run WHERE id = :id")
        return await session.scalar(statement, {"id": run_id})


def after_commit_of_claim(monkeypatch: pytest.MonkeyPatch, then: Callable[[AsyncConnection], Awaitable[None]]) -> None:
    """Call a function after the COMMIT of the first claim, before its answer."""
    claim, commit, claimed = owned_run._claim, AsyncConnection.commit, list[AsyncConnection]()

    async def noted(database: Any, connection: AsyncConnection, *more: Any) -> Any:
        found = await claim(database, connection, *more)
        claimed.append(connection)
        return found

    async def late(self: AsyncConnection) -> None:
        await commit(self)
        if claimed == [self]:
            claimed.append(self)
            await then(self)

    monkeypatch.setattr(owned_run, "_claim", noted)
    monkeypatch.setattr(AsyncConnection, "commit", late)


async def lose_answer(connection: AsyncConnection) -> None:
    raw = (await connection.get_raw_connection()).driver_connection
    assert raw is not None
    raw.terminate()
    await connection.exec_driver_sql("SELECT 1")  # raises what a lost answer raises


async def test_a_run_whose_first_claim_lost_its_answer_ends_dead_in_the_ledger_too(
    fast: Settings, client: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill_targets(database, 100)
    after_commit_of_claim(monkeypatch, lose_answer)
    async with working(fast, walk_once):
        run = await client.enqueue(walk_once)
        with pytest.raises(JobFailed):
            await run.result(timeout=60)
    assert (await state_of(database, run.id), _CALLS) == ("dead", ["walk"])


async def test_a_job_that_forgives_a_lost_claim_has_succeeded_in_the_ledger_too(
    fast: Settings, client: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_commit_of_claim(monkeypatch, lose_answer)
    async with working(fast, forgives):
        run = await client.enqueue(forgives)
        assert await run.result(timeout=60) == "forgiven"
    assert (await state_of(database, run.id), _CALLS) == ("succeeded", [])


async def test_a_run_that_is_cancelled_within_its_claim_is_cancelled_in_the_ledger_too(
    fast: Settings, client: Client, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_begun, may_end = asyncio.Event(), asyncio.Event()

    async def wait(_: AsyncConnection) -> None:
        has_begun.set()
        await may_end.wait()

    after_commit_of_claim(monkeypatch, wait)
    async with working(fast, one_step):
        run = await client.enqueue(one_step)
        await asyncio.wait_for(has_begun.wait(), 60)
        await client.cancel(run.id)
        await until_true(lambda: any(task.cancelling() for task in asyncio.all_tasks()))  # the worker has heard it
        may_end.set()
        with pytest.raises(JobCancelled):
            await run.result(timeout=60)
    assert (await state_of(database, run.id), _CALLS) == ("cancelled", [])


async def test_a_run_that_is_cancelled_while_its_next_attempt_begins_does_not_come_back(
    fast: Settings, client: Client, database: Database, redis: Redis
) -> None:
    await fill_targets(database, 100)

    async def waits() -> bool:
        return await state_of(database, run.id) == "waiting"

    async def blocked() -> set[Any]:
        """Return the claims that wait for the lock."""
        async with database.session() as session:
            waiting = "SELECT query_start FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE :claim"
            return set(await session.scalars(text(waiting), {"claim": "%new run%"}))

    async def is_ending() -> bool:
        """Return whether the worker has ended the run in Redis, or waits to end it in the ledger."""
        return bool(await redis.exists(f"arq:result:{run.id}")) or bool(await blocked() - first)

    async with working(with_worker(fast, backoff_base_seconds=1.0, backoff_max_seconds=1.0), fails_first):
        run = await client.enqueue(fails_first)
        await until(waits)
        async with database.engine.connect() as holder:
            await holder.execute(text("SET application_name = 'psql'"))  # no session of a frozen worker
            await holder.execute(text("SELECT FROM worker.run WHERE id = :id FOR UPDATE"), {"id": run.id})
            first = await until(blocked)
            await client.cancel(run.id)
            await until(is_ending)
            await holder.rollback()
        with pytest.raises(JobCancelled):
            await run.result(timeout=60)
        assert await state_of(database, run.id) == "cancelled"
    async with database.session() as session:
        assert await session.scalar(text("SELECT count(*) FROM target WHERE touched")) == 10


@pytest.mark.parametrize("how", ["answer lost", "cancelled"])
async def test_the_session_of_a_claim_without_an_answer_serves_no_other_run(
    database: Database, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    async def fail(connection: AsyncConnection) -> None:
        raise TimeoutError("no answer") if how == "answer lost" else asyncio.CancelledError

    after_commit_of_claim(monkeypatch, fail)
    ledger = Ledger(database, "test")
    with pytest.raises(TimeoutError if how == "answer lost" else asyncio.CancelledError):
        await ledger.claim(RunSpec("lost", "walk", "q", "{}", ""))
    async with database.session() as session:
        [pid] = await session.scalars(text("SELECT backend_pid FROM worker.run WHERE id = 'lost'"))
    others = [await ledger.claim(RunSpec(f"other {n}", "walk", "q", "{}", "")) for n in range(3)]
    assert pid not in [other.backend_pid for other in others]
    for other in others:
        await other.close()
