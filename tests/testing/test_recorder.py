"""`enqueued`: what a test enqueues, and running it; and `run_job` that dies in the middle."""

from __future__ import annotations

import asyncio
from decimal import Decimal

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from tests.models import Author
from tests.support.authors import count_seen, fill_authors
from worker import PREVIOUS_RESULT, Client, InvalidArguments, JobContext, job
from worker.errors import UnknownJob
from worker.testing import JobRunner, Recorder
from worker.types import Database

sent: list[str] = []


@job
async def send(ctx: JobContext, user_id: int, price: Decimal = Decimal("1.50")) -> str:
    """Note a mail."""
    sent.append(f"{user_id} {price}")
    return str(user_id)


@job(unique=True)
async def once_each(ctx: JobContext, user_id: int) -> None:
    """Be unique."""


@job
async def join(ctx: JobContext, parts: list[str], end: str = ".") -> str:
    """Join results."""
    return "+".join(parts) + end


@job
async def stamp(ctx: JobContext, text: str) -> str:
    """Put a stamp on a result."""
    return f"[{text}]"


@job
async def see_all(ctx: JobContext) -> int:
    """Count each author once."""
    async for batch in ctx.chunks(select(Author), size=10):
        for author in batch:
            author.seen += 1
    return ctx.rows_done


async def signup(client: Client, user_id: int) -> None:
    """Stand for the code of an application."""
    await client.enqueue(send.options(delay=60, priority=2, queue="mail"), user_id)


async def test_runs_are_found_by_job_and_arguments_of_either_client(enqueued: Recorder) -> None:
    await signup(enqueued.client, 7)
    await asyncio.to_thread(enqueued.sync_client.enqueue, send, 8, price=Decimal(2))
    await enqueued.client.enqueue_many(send, [{"user_id": 1}, {"user_id": 2}])
    await enqueued.client.enqueue("elsewhere", path="x")
    run = enqueued.assert_one(send, user_id=7, price=Decimal("1.50"))  # with its default
    assert (run.queue, run.priority, run.due_at is not None, run.job) == ("mail", 2, True, "send")
    assert [one.arguments["user_id"] for one in enqueued.of(send)] == [7, 8, 1, 2]
    assert enqueued.assert_one("send", price=Decimal("2.00")).arguments == {"user_id": 8, "price": "2"}
    assert enqueued.assert_one("elsewhere", path="x").next_jobs == ()
    enqueued.assert_none(send, user_id=9)
    for wrong in (lambda: enqueued.assert_one(send), lambda: enqueued.assert_one(send, user_id=9)):
        with pytest.raises(AssertionError, match=r"runs of send\(.*not 1; enqueued were:\n  send\(user_id=7\)\n"):
            wrong()
    with pytest.raises(AssertionError, match="5 runs, not 0"):
        enqueued.assert_none()
    with pytest.raises(InvalidArguments):
        await enqueued.client.enqueue(send, "x")
    with pytest.raises(InvalidArguments, match="send has no argument user; it has user_id, price"):
        enqueued.assert_none(send, user=9)  # it would hold whatever was enqueued
    with pytest.raises(InvalidArguments, match="signup is not a job"):
        enqueued.assert_none(signup)  # type: ignore[arg-type]
    enqueued.clear()
    enqueued.assert_none()


async def test_a_known_or_unique_run_is_recorded_once_and_a_replaced_one_by_its_last_arguments(
    enqueued: Recorder,
) -> None:
    for user_id in (1, 2):
        await enqueued.client.enqueue(send.options(id="same"), user_id)
        await enqueued.client.enqueue(once_each, 5)
        await enqueued.client.enqueue(send.options(id="last", replace=True), user_id)
    assert [(run.job, run.arguments["user_id"]) for run in enqueued.runs] == [
        ("send", 1),
        ("once_each", 5),
        ("send", 2),
    ]


async def test_run_all_runs_chains_and_groups_and_stores_results(enqueued: Recorder, run_job: JobRunner) -> None:
    sent.clear()
    chain = await enqueued.client.enqueue(send.options(then=[stamp.call(text=PREVIOUS_RESULT)]), 1)
    ends = join.call(parts=PREVIOUS_RESULT, end="!")
    group = await enqueued.client.group([send.call(n) for n in (2, 3)], then=ends)
    empty = await enqueued.client.group([send.call(4)], then=stamp.call(text="no result"))
    assert enqueued.runs[0].next_jobs == ("stamp",)
    assert await enqueued.run_all() == ["1", "2", "3", "4", "[1]", "2+3!", "[no result]"]
    assert sent == ["1 1.50", "2 1.50", "3 1.50", "4 1.50"]
    enqueued.assert_none()
    assert await chain.result(timeout=5) == "1"
    assert await chain.next_runs[0].result(timeout=5) == "[1]"
    assert group.callback is not None
    assert await group.callback.result(timeout=5) == "2+3!"
    assert empty.callback is not None
    assert await empty.callback.status() == "succeeded"
    await enqueued.client.enqueue("nobody_knows_it")
    with pytest.raises(UnknownJob, match=r"pass it, run_all\(\[nobody_knows_it\]\)"):
        await enqueued.run_all()


async def test_enqueue_in_counts_when_its_transaction_commits(enqueued: Recorder, sqlite_session: AsyncSession) -> None:
    session, client = sqlite_session, enqueued.client
    await client.enqueue_in(session, send, 1)
    enqueued.assert_none()
    await session.rollback()
    await client.enqueue_in(session, send, 2)
    async with session.begin_nested():
        await client.enqueue_many_in(session, send, [{"user_id": 3}])
    savepoint = await session.begin_nested()
    await client.enqueue_in(session, send, 4)
    await savepoint.rollback()
    enqueued.assert_none()
    await session.commit()
    assert [run.arguments["user_id"] for run in enqueued.runs] == [2, 3]
    await session.run_sync(lambda blocking: enqueued.sync_client.enqueue_in(blocking, send, 5))
    await session.commit()
    async with session.bind.connect() as connection:  # type: ignore[union-attr]
        await client.enqueue_in(connection, send, 6)
        await connection.rollback()
        await client.enqueue_in(connection, send, 7)
        await connection.commit()
    assert [run.arguments["user_id"] for run in enqueued.runs] == [2, 3, 5, 7]


async def test_enqueue_in_follows_the_savepoints_of_a_connection(
    enqueued: Recorder, sqlite_session: AsyncSession
) -> None:
    client = enqueued.client
    async with sqlite_session.bind.connect() as connection:  # type: ignore[union-attr]
        outer = await connection.begin_nested()
        await client.enqueue_in(connection, send, 1)
        await outer.rollback()
        await client.enqueue_in(connection, send, 2)
        outer = await connection.begin_nested()
        await client.enqueue_in(connection, send, 3)
        async with connection.begin_nested():
            await client.enqueue_in(connection, send, 4)
        await outer.rollback()
        async with connection.begin_nested():
            await client.enqueue_in(connection, send, 5)
        await connection.commit()
        assert [run.arguments["user_id"] for run in enqueued.runs] == [2, 5]
    with pytest.raises(InvalidArguments, match="signup is not a job"):
        await client.enqueue_in(sqlite_session, signup)  # type: ignore[call-overload]


async def test_a_job_that_dies_after_a_batch_continues_from_the_ledger(database: Database, enqueued: Recorder) -> None:
    runner = JobRunner(database, database.settings)
    await fill_authors(database, 45)
    assert await runner(see_all, die_after_batch=3) == 45
    assert await count_seen(database) == {1: 45}
    async with database.session() as session:
        found = await session.execute(select(func.count()).select_from(Author))
        assert found.scalar_one() == 45
    with pytest.raises(AssertionError, match="see_all has ended after 5 batches, before it could die"):
        await runner(see_all, die_after_batch=6)
    await enqueued.client.enqueue(see_all)
    assert await enqueued.run_all() == [45]  # over a database that the fixture opens itself
    assert await count_seen(database) == {3: 45}
    runner.close()
    for wrong in (0, -1, True):
        with pytest.raises(InvalidArguments, match="batches are counted from 1"):
            await runner(see_all, die_after_batch=wrong)
    with pytest.raises(InvalidArguments, match="signup is not a job"):
        await runner(signup)  # type: ignore[call-overload]
