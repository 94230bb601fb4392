"""The limit of a quarantine is that of the run, and any number of rows is retried."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select, text

from tests.models import Author
from tests.support.authors import count_seen, fill_authors
from worker import JobContext, NonRetryableError, Settings, job
from worker.db.engine import Database
from worker.ledger import Ledger, RunSpec
from worker.testing.runner import JobRunner

pytestmark = pytest.mark.usefixtures("database")


@job
async def walk(ctx: JobContext, bad: int, limit: float, loop: str = "chunks", size: int = 10) -> int:
    """Walk the authors, of which one fails."""
    options: dict[str, Any] = {"size": size, "on_error": "quarantine", "quarantine_limit": limit}
    rows: Any = ctx.stream(select(Author.id).order_by(Author.id), **options)
    async for batch in ctx.chunks(select(Author.id), **options) if loop == "chunks" else rows:
        if bad in batch:
            raise ValueError("bad")
        await batch.bulk.update(Author, [{"id": key, "seen": 1} for key in batch])
    return ctx.rows_done


@pytest.mark.parametrize("loop", ["chunks", "stream"])
@pytest.mark.parametrize("bad", [1, 300])
async def test_share_is_of_all_rows_wherever_the_failing_row_is(
    database: Database, settings: Settings, loop: str, bad: int
) -> None:
    await fill_authors(database, 300)
    async with database.transaction() as session:
        await session.execute(text("ANALYZE author"))
    run_job = JobRunner(database, settings)
    assert await run_job(walk, bad, 0.01, loop) == 299
    with pytest.raises(ValueError, match="bad"):
        await run_job(walk, bad, 0.0001, loop)


async def test_rows_of_an_earlier_run_of_the_same_id_do_not_count(database: Database, settings: Settings) -> None:
    await fill_authors(database, 20)
    run_job, ledger = JobRunner(database, settings), Ledger(database, "test")
    for night in range(4):
        ctx = run_job.context(walk.name, "nightly")
        attempt = ctx._attempt
        attempt._spec = lambda night=night: RunSpec("nightly", walk.name, "arq:queue", f'{{"et":{night}}}')  # type: ignore[misc]
        assert await attempt.run(walk, ctx, {"bad": 7, "limit": 2}) == 19
        assert attempt.ledger_run is not None
        await attempt.ledger_run.finish("succeeded", result="0")
        await attempt.close()
    assert len(await ledger.quarantine.list_rows()) == 4, "the rows of earlier nights are kept"


@pytest.mark.parametrize("loop", ["chunks", pytest.param("stream", marks=pytest.mark.long)])
async def test_more_rows_are_retried_than_a_statement_takes_parameters(
    database: Database, settings: Settings, loop: str
) -> None:
    await fill_authors(database, 40)
    run_job, ledger = JobRunner(database, settings), Ledger(database, "test")
    await run_job.attempt(walk, "first", 7, 2, loop)
    async with database.transaction() as session:
        await session.execute(text("UPDATE author SET seen = 0"))
        await session.execute(
            text(
                "INSERT INTO worker.quarantine (run_id, step, key, error) "
                "SELECT run_id, step, jsonb_build_array(n), 'x' FROM worker.quarantine, generate_series(31, 33100) n"
            )
        )
    ctx = run_job.context(walk.name, "again")
    attempt = ctx._attempt
    step = f"1-{loop}"
    attempt._spec = lambda: RunSpec("again", walk.name, "arq:queue", "{}", "", ("first", step))
    assert await attempt.run(walk, ctx, {"bad": 0, "limit": 0, "loop": loop}) == 11
    assert attempt.ledger_run is not None
    assert attempt.ledger_run.checkpoints.batches == 2, "batches of the loop's size, not one for each row"
    await attempt.close()
    left = await ledger.quarantine.list_rows(limit=40_000)
    assert {row.key[0] for row in left} == set(range(41, 33_101)), "the rows that are gone stay in quarantine"
    assert await ledger.quarantine.count_all(10_000) == 10_000
    runs = {one.id: (one.quarantined, one.total) for one in await ledger.list_runs()}
    assert runs["first"][0] == 1_000, "a list counts no further"
    assert runs["again"][0] == 0
    assert await count_seen(database) == {0: 29, 1: 11}


@job
async def walk_without_quarantine(ctx: JobContext) -> int:
    """Walk the authors, of which number 25 fails."""
    async for batch in ctx.chunks(select(Author.id), size=10, name="1-chunks"):
        if 25 in batch:
            raise ValueError("bad")
    return ctx.rows_done


async def test_rows_before_one_that_fails_again_leave_the_quarantine(database: Database, settings: Settings) -> None:
    await fill_authors(database, 30)
    run_job, ledger = JobRunner(database, settings), Ledger(database, "test")
    await run_job.attempt(walk, "first", 7, 2)
    async with database.transaction() as session:
        await session.execute(
            text(
                "INSERT INTO worker.quarantine (run_id, step, key, error) "
                "SELECT run_id, step, jsonb_build_array(n), 'x' FROM worker.quarantine, generate_series(1, 30) n "
                "WHERE n <> 7"
            )
        )
    for _ in range(5):
        ctx = run_job.context(walk_without_quarantine.name, "again")
        ctx._attempt._spec = lambda: RunSpec("again", "walk", "arq:queue", "{}", "", ("first", "1-chunks"))  # type: ignore[misc]
        with pytest.raises(ValueError, match="bad"):
            await ctx._attempt.run(walk_without_quarantine, ctx, {})
        await ctx._attempt.close()
    assert sorted(row.key[0] for row in await ledger.quarantine.list_rows()) == list(range(25, 31))


async def test_share_is_of_the_rows_that_there_were_where_the_estimate_is_far_too_high(
    database: Database, settings: Settings
) -> None:
    await fill_authors(database, 2000)
    async with database.transaction() as session:
        await session.execute(text("ANALYZE author"))
        await session.execute(text("DELETE FROM author WHERE id > 20"))
    run_job, ledger = JobRunner(database, settings), Ledger(database, "test")
    for _ in range(2):  # the loop has ended, and is not walked again
        with pytest.raises(NonRetryableError, match="1 of 20 rows are quarantined"):
            await run_job.attempt(walk, "stale", 7, 0.01)
    await ledger.quarantine.delete_rows(run_id="stale")
    assert await run_job.attempt(walk, "stale", 7, 0.01) == 19
