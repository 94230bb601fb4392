"""The rules of the loop, on a real PostgreSQL."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.orm import selectinload

from tests.batch.marked_rows import fill, mark
from tests.models import Author, Book
from tests.support.authors import count_seen
from tests.support.contexts import MakeContext
from tests.support.controls import StopsAfter
from worker.db.engine import Database
from worker.errors import (
    AlreadyFinished,
    AttemptReleased,
    CursorMismatch,
    FencedOut,
    LazyLoadError,
    PoisonBatch,
    RunIdConflict,
)
from worker.ledger import Ledger, RunSpec
from worker.settings import Settings
from worker.testing.runner import JobRunner


async def test_each_row_is_done_once(context: MakeContext, database: Database) -> None:
    ctx = context()
    await fill(ctx, 105)
    await mark(ctx)
    assert await count_seen(database) == {1: 105}
    assert ctx.rows_done == 105


async def test_a_batch_that_raises_is_rolled_back_and_done_again_with_the_same_number(
    context: MakeContext, database: Database
) -> None:
    first = context("run")
    await fill(first, 100)
    with pytest.raises(RuntimeError):
        await mark(first, stop_after=4)
    await first._attempt.fail()
    await first._attempt.close()
    assert await count_seen(database) == {0: 60, 1: 40}
    second = context("run")
    numbers = []
    async for batch in second.chunks(select(Author), size=10):
        numbers.append((batch.number, batch.first_key))
        for author in batch:
            author.seen += 1
    assert numbers[0] == (5, 41)
    assert await count_seen(database) == {1: 100}


async def test_a_finished_loop_is_skipped_and_a_finished_run_answers(context: MakeContext, database: Database) -> None:
    first = context("run")
    await fill(first, 30)
    await mark(first)
    await first._attempt.close()
    second = context("run")
    await mark(second)
    assert await count_seen(database) == {1: 30}
    assert second._attempt.ledger_run is not None
    await second._attempt.ledger_run.finish("succeeded", result="30")
    third = context("run")
    with pytest.raises(AlreadyFinished) as caught:
        await mark(third)
    assert caught.value.result == 30


async def test_a_run_id_is_of_one_job(context: MakeContext, database: Database, settings: Settings) -> None:
    ctx = context("run")
    await fill(ctx, 5)
    await mark(ctx)
    other = JobRunner(database, settings).context("another_job", "run")
    with pytest.raises(RunIdConflict, match="'run' belongs to an unfinished run of test"):
        await mark(other)
    await other._attempt.close()


async def test_break_commits_the_batch_and_ends_the_step(context: MakeContext, database: Database) -> None:
    ctx = context("run")
    await fill(ctx, 30)
    async for batch in ctx.chunks(select(Author), size=10):
        for author in batch:
            author.seen += 1
        break
    changed = await ctx.sweep(update(Author).where(Author.seen == 1).values(seen=2))
    assert changed == 10
    assert await count_seen(database) == {0: 20, 2: 10}
    assert ctx._attempt.ledger_run is not None
    assert [step.done for step in ctx._attempt.ledger_run.steps.values()] == [True, True]


async def test_a_worker_that_was_replaced_cannot_commit(context: MakeContext, database: Database) -> None:
    slow = context("run")
    await fill(slow, 40)
    loop = aiter(slow.chunks(select(Author), size=10))
    batch = await anext(loop)
    for author in batch:
        author.seen += 1
    # Keep the successor from ending the slow one's connection: here it is the fence alone that has to hold.
    async with database.transaction() as session:
        await session.execute(text("UPDATE worker.run SET backend_pid = NULL"))
    other = context("run")
    await other._attempt.durable_run()
    with pytest.raises(FencedOut):
        await anext(loop)
    await slow._attempt.fail()
    await mark(other)
    assert await count_seen(database) == {1: 40}


async def test_a_successor_ends_the_connection_of_a_frozen_worker(context: MakeContext, database: Database) -> None:
    frozen = context("run")
    await fill(frozen, 40)
    loop = aiter(frozen.chunks(select(Author), size=10))
    for author in await anext(loop):
        author.seen += 1
    assert frozen._attempt.ledger_run is not None
    # Its rows are locked: without the end of that connection this would wait for ever.
    await asyncio.wait_for(mark(context("run")), 10)
    assert await count_seen(database) == {1: 40}
    await frozen._attempt.fail()


async def test_rows_that_others_insert_do_not_keep_a_walk_going(context: MakeContext, database: Database) -> None:
    ctx = context()
    await fill(ctx, 30)
    next_id = 1000
    async for batch in ctx.chunks(select(Author), size=10):
        next_id += 1
        await ctx.bulk.insert(
            Author, [{"id": next_id, "name": "late", "region": 1, "code": f"late{next_id}", "seen": 0}]
        )
        for author in batch:
            author.seen += 1
    assert await count_seen(database) == {0: 3, 1: 30}


async def test_rows_that_others_delete_beside_a_walk_are_left_out(context: MakeContext, database: Database) -> None:
    ctx = context()
    await fill(ctx, 60)
    walked: list[int] = []
    async for batch in ctx.chunks(select(Author), size=10):
        walked += [author.id for author in batch]
        if batch.number <= 2:  # of the next batch, of one after it, and the row at which the walk was to end
            await ctx.bulk.delete(Author, [batch.number * 10 + 3, batch.number * 10 + 25, 61 - batch.number])
    gone = {13, 23, 35, 45, 60, 59}
    assert walked == [number for number in range(1, 61) if number not in gone]


async def test_a_locked_walk_loses_no_update_of_others(context: MakeContext, database: Database) -> None:
    ctx = context()
    await fill(ctx, 50)

    async def write_beside() -> None:
        for id_ in range(1, 51):
            async with database.transaction() as session:
                await session.execute(update(Author).where(Author.id == id_).values(seen=Author.seen + 100))

    writer = asyncio.create_task(write_beside())
    await mark(ctx, size=5)
    await writer
    assert await count_seen(database) == {101: 50}


async def test_a_row_whose_key_moves_while_we_wait_for_it_carries_the_cursor_past_no_row(
    context: MakeContext, database: Database
) -> None:
    ctx = context()
    await fill(ctx, 30)
    async with database.session() as mover:
        await mover.execute(update(Author).where(Author.id == 10).values(id=25_000))
        walk = asyncio.create_task(mark(ctx, size=10))
        async with database.session() as watcher:
            waiting = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            while not await watcher.scalar(waiting):
                await watcher.rollback()
    await walk
    async with database.session() as session:
        left = (await session.scalars(select(Author.id).where(Author.seen != 1))).all()
    assert list(left) in ([], [25_000])  # "may be done or not"; every other row once


@pytest.mark.parametrize(
    ("by", "first"),
    [
        ([Author.region, Author.code], (0, "c14")),
        ([Author.region.desc(), Author.code], (6, "c13")),
        ([Author.region.desc(), Author.code.desc()], (6, "c97")),
        (Author.id.desc(), 100),
    ],
)
async def test_composite_and_descending_keys_walk_every_row_once_and_resume(
    context: MakeContext, database: Database, by: Any, first: Any
) -> None:
    ctx = context("run")
    await fill(ctx, 100)
    keys = []
    with pytest.raises(RuntimeError):
        async for batch in ctx.chunks(select(Author), by=by, size=9, allow_sort=True):
            keys.append(batch.first_key)
            for author in batch:
                author.seen += 1
            if batch.number == 4:
                raise RuntimeError
    await ctx._attempt.fail()
    await ctx._attempt.close()
    assert keys[0] == first
    await mark(context("run"), by=by, size=9, allow_sort=True)
    assert await count_seen(database) == {1: 100}


async def test_core_columns_come_as_their_rows(context: MakeContext) -> None:
    ctx = context()
    await fill(ctx, 12)
    rows = []
    async for batch in ctx.chunks(select(Author.name, Author.region).where(Author.id > 2), size=5):
        rows.extend(batch)
    assert rows[0] == ("n3", 3)
    assert rows[0].name == "n3"  # type: ignore[attr-defined]
    assert len(rows) == 10


async def test_a_join_that_repeats_rows_does_not_part_them(context: MakeContext) -> None:
    ctx = context()
    await fill(ctx, 6)
    await ctx.bulk.insert(Book, [{"id": i, "author_id": i % 3 + 1, "title": f"t{i}"} for i in range(30)])
    titles = []
    async for batch in ctx.chunks(select(Author.id, Book.title).join(Author.books), size=2, lock=False):
        titles.extend(title for _, title in batch)
    assert sorted(titles) == sorted(f"t{i}" for i in range(30))


async def test_rows_of_a_join_that_look_alike_are_all_handed_out(context: MakeContext) -> None:
    ctx = context()
    await fill(ctx, 3)
    await ctx.bulk.insert(Book, [{"id": i, "author_id": i % 3 + 1, "title": "same"} for i in range(12)])
    for columns in ((Author, Book.title), (Author.id, Book.title), (Book.title, Author.id)):
        rows = 0
        statement = select(*columns).join(Book, Book.author_id == Author.id)
        async for batch in context().chunks(statement, by=Author.id, size=2, lock=False):
            rows += len(batch)
        assert rows == 12


async def test_an_id_that_is_enqueued_again_after_its_end_is_another_run(
    database: Database, settings: Settings, context: MakeContext
) -> None:
    await fill(context(), 30)
    ledger = Ledger(database)
    first = await ledger.claim(RunSpec("again", "test", "arq:queue", '{"et": 1}', "[]"))
    await first.finish("succeeded", result="1")
    await first.close()
    with pytest.raises(AlreadyFinished):  # the same one, come again
        await ledger.claim(RunSpec("again", "test", "arq:queue", '{"et": 1}', "[]"))
    second = await ledger.claim(RunSpec("again", "test", "arq:queue", '{"et": 2}', "[3]"))
    assert (second.rows, second.attempt) == (0, 1)
    with pytest.raises(RunIdConflict, match=r"with arguments \[3\]; a run of test with arguments \[4\]"):
        await ledger.claim(RunSpec("again", "test", "arq:queue", '{"et": 3}', "[4]"))
    await second.close()


async def test_a_loop_that_took_another_ones_place_is_refused(context: MakeContext) -> None:
    ctx = context("run")
    await fill(ctx, 30)
    await mark(ctx)
    await ctx._attempt.close()
    after_deploy = context("run")
    with pytest.raises(CursorMismatch, match="is the end of another walk"):
        async for _ in after_deploy.chunks(select(Author).where(Author.region == 1)):
            pytest.fail("a batch was read")
    await after_deploy._attempt.fail()


async def test_loader_options_work_and_a_lazy_load_says_what_to_do(context: MakeContext) -> None:
    ctx = context()
    await fill(ctx, 3)
    await ctx.bulk.insert(Book, [{"id": 1, "author_id": 1, "title": "t"}])
    async for batch in ctx.chunks(select(Author).options(selectinload(Author.books))):
        assert [len(author.books) for author in batch] == [1, 0, 0]
    with pytest.raises(LazyLoadError, match=r"Author\.books.*selectinload.*joinedload.*AsyncAttrs"):
        async for batch in ctx.chunks(select(Author), name="lazy"):
            batch[0].books  # noqa: B018
    await ctx._attempt.fail()


async def test_without_lock_no_transaction_is_open_while_the_body_runs(
    context: MakeContext, database: Database
) -> None:
    ctx = context()
    await fill(ctx, 10)
    async for batch in ctx.chunks(select(Author), lock=False, size=5):
        async with database.session() as session:
            open_ = await session.scalar(
                text("SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'")
            )
        assert open_ == 0
        for author in batch:
            author.seen += 1
    assert await count_seen(database) == {1: 10}


async def test_a_drain_acts_between_batches_and_costs_no_try(context: MakeContext, database: Database) -> None:
    ctx = context("run", control=StopsAfter(2))
    await fill(ctx, 50)
    with pytest.raises(AttemptReleased):
        await mark(ctx)
    await ctx._attempt.fail()
    assert ctx._attempt.ledger_run is not None
    assert await ctx._attempt.ledger_run.release("waiting", failed=False) == 1
    await ctx._attempt.close()
    again = context("run")
    await mark(again)
    assert await count_seen(database) == {1: 50}
    assert again._attempt.ledger_run is not None
    assert (again._attempt.ledger_run.attempt, again._attempt.ledger_run.takeovers) == (1, 0)


async def test_a_batch_that_ends_its_worker_each_time_is_named_with_its_keys(context: MakeContext) -> None:
    first = context("run", max_attempts=2)
    await fill(first, 50)
    for _ in range(3):
        ctx = context("run", max_attempts=2)
        loop = aiter(ctx.chunks(select(Author), size=10))
        if ctx.attempt <= 2:
            try:
                await anext(loop)
            except PoisonBatch as error:
                assert error.keys == [1, 10]
                await ctx._attempt.fail()
                return
        await ctx._attempt.fail()
        await ctx._attempt.close()
    pytest.fail("the deadly batch was run without end")
