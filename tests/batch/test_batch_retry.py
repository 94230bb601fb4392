"""Failed batches are retried: with half of the rows if that can help, without the row if it is the cause."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import DBAPIError

from tests.models import Author, Book
from tests.support.authors import count_seen, fill_authors
from worker import JobContext, Retry, Settings, job
from worker.db.engine import Database
from worker.errors import UsageError
from worker.ledger import Ledger
from worker.testing.runner import JobRunner

BAD = {13, 14, 77}
sizes: list[int] = []


@pytest.fixture
async def run(database: Database, settings: Settings) -> JobRunner:
    """A hundred rows, and a runner of jobs over them."""
    sizes.clear()
    await fill_authors(database, 100)
    return JobRunner(database, settings)


async def attempt_of(database: Database) -> list[tuple[str, int]]:
    async with database.session() as session:
        return [tuple(row) for row in await session.execute(text("SELECT state, attempt FROM worker.run"))]


TRIGGER = """
CREATE OR REPLACE FUNCTION hinder() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} RETURN NEW; END $$
"""


async def hinder(database: Database, body: str) -> None:
    """Make updates of authors fail."""
    async with database.transaction() as session:
        await session.execute(text("CREATE SEQUENCE IF NOT EXISTS hindrances"))
        await session.execute(text("ALTER SEQUENCE hindrances RESTART"))
        await session.execute(text(TRIGGER.format(body=body)))
        await session.execute(
            text("CREATE TRIGGER hinder BEFORE UPDATE ON author FOR EACH ROW EXECUTE FUNCTION hinder()")
        )


@job
async def count_all(ctx: JobContext, size: int = 40) -> int:
    """Count each author, by objects."""
    async for batch in ctx.chunks(select(Author), size=size):
        sizes.append(len(batch))
        for author in batch:
            author.seen += 1
    return ctx.rows_done


@job
async def count_by_sweep(ctx: JobContext) -> int:
    """Count each author inside the server."""
    return await ctx.sweep(update(Author).values(seen=Author.seen + 1), size=40)


@job
async def count_by_bulk(ctx: JobContext) -> int:
    """Count each author, with one statement a batch."""
    async for batch in ctx.chunks(select(Author), size=40):
        sizes.append(len(batch))
        await batch.bulk.update(Author, [{"id": author.id, "seen": author.seen + 1} for author in batch])
    return ctx.rows_done


@pytest.mark.parametrize("one", [count_by_bulk, count_by_sweep])
async def test_a_batch_that_takes_too_long_is_halved_until_it_fits(
    run: JobRunner, database: Database, settings: Settings, one: Any
) -> None:
    await hinder(database, "PERFORM pg_sleep(0.01);")
    limits = settings.database.model_copy(update={"statement_timeout_seconds": 0.25})
    hurried = Database(settings.model_copy(update={"database": limits}))
    try:
        assert await JobRunner(hurried, settings)(one) == 100
    finally:
        await hurried.close()
    assert await count_seen(database) == {1: 100}
    assert await attempt_of(database) == [("succeeded", 1)]
    if one is count_by_bulk:
        assert sizes[:3] == [40, 20, 20]


@pytest.mark.parametrize("code", ["40P01", "40001", "55P03"])
async def test_what_will_pass_costs_no_try(run: JobRunner, database: Database, code: str) -> None:
    await hinder(
        database, f"IF NEW.id = 50 AND nextval('hindrances') < 4 THEN RAISE 'x' USING ERRCODE = '{code}'; END IF;"
    )
    assert await run(count_all) == 100
    assert await count_seen(database) == {1: 100}
    assert await attempt_of(database) == [("succeeded", 1)]


async def test_what_does_not_pass_is_a_failed_try_in_the_end(run: JobRunner, database: Database) -> None:
    await hinder(database, "IF NEW.id = 50 THEN RAISE 'x' USING ERRCODE = '40P01'; END IF;")
    with pytest.raises(DBAPIError):
        await run(count_all)
    assert await count_seen(database) == {0: 51, 1: 49}  # all rows except the failing one and the rows after it
    assert len(sizes) < 40


@job
async def refuse_some(ctx: JobContext, limit: float) -> int:
    """Count each author, except the failing ones."""
    async for batch in ctx.chunks(select(Author), size=40, on_error="quarantine", quarantine_limit=limit):
        sizes.append(len(batch))
        for author in batch:
            author.seen += 1
            if author.id in BAD:
                raise ValueError(f"bad row\x00 {author.id}")
    return ctx.rows_done


async def test_rows_that_cannot_be_done_are_set_aside_and_all_others_done_once(
    run: JobRunner, database: Database
) -> None:
    assert await run(refuse_some, limit=3) == 97
    assert await count_seen(database) == {0: 3, 1: 97}
    rows = await Ledger(database).quarantine.list_rows()
    assert {row.key[0] for row in rows} == BAD
    assert {(row.job, row.step) for row in rows} == {("refuse_some", "1-chunks")}
    assert rows[0].error == r"ValueError: bad row\x00 77"
    assert "refuse_some" in (rows[0].traceback or "")
    assert rows[0].row["name"] == "n77"
    assert len(sizes) < 60  # halves, and not one by one
    assert await Ledger(database).quarantine.delete_rows(row_ids=[rows[0].id]) == 1
    assert await Ledger(database).quarantine.delete_rows(run_id=rows[0].run_id) == 2


@pytest.mark.parametrize("limit", [0, 2, 0.02])
async def test_with_more_of_them_than_are_allowed_the_run_fails_with_the_rows_error(
    run: JobRunner, database: Database, limit: float
) -> None:
    async with database.transaction() as session:
        await session.execute(text("ANALYZE author"))  # a share is of the rows that the server knows
    with pytest.raises(ValueError, match="bad row"):
        await run(refuse_some, limit=limit)
    found = await count_seen(database)
    assert found.get(1, 0) == (74 if limit else 0)
    assert len(await Ledger(database).quarantine.list_rows()) == (2 if limit else 0)


async def test_a_share_is_of_all_that_were_seen(run: JobRunner, database: Database) -> None:
    assert await run(refuse_some, limit=0.15) == 97


@job
async def refuse_in_a_stream(ctx: JobContext) -> int:
    """Write a book for each author, except the failing ones."""
    statement = select(Author.id, Author.name).order_by(Author.id)
    async for partition in ctx.stream(statement, size=40, on_error="quarantine", quarantine_limit=10):
        sizes.append(len(partition))
        await partition.bulk.insert(Book, [{"author_id": key, "title": name} for key, name in partition])
        bad = [key for key, _ in partition if key in BAD]
        if bad:
            raise ValueError(f"bad rows {bad}")
    return ctx.rows_done


async def test_partitions_of_a_stream_are_halved_too(run: JobRunner, database: Database) -> None:
    assert await run(refuse_in_a_stream) == 97
    async with database.session() as session:
        written = (await session.scalars(select(Book.author_id).order_by(Book.author_id))).all()
    assert list(written) == [key for key in range(1, 101) if key not in BAD]
    assert {row.key[0] for row in await Ledger(database).quarantine.list_rows()} == BAD


@job
async def refuse_the_last(ctx: JobContext) -> int:
    """The last row of the walk is the bad one, and a loop follows."""
    async for batch in ctx.chunks(select(Author), size=40, on_error="quarantine", quarantine_limit=10):
        if batch.last_key == 100:
            raise ValueError("the last one")
        for author in batch:
            author.seen += 1
    return ctx.rows_done + await ctx.sweep(update(Author).values(seen=Author.seen + 1))


async def test_the_last_row_of_a_walk_can_be_set_aside(run: JobRunner, database: Database) -> None:
    assert await run(refuse_the_last) == 199
    assert await count_seen(database) == {1: 1, 2: 99}


async def test_a_try_that_dies_in_between_goes_on_with_what_is_set_aside(run: JobRunner, database: Database) -> None:
    with pytest.raises(ValueError, match="bad row"):
        await run.attempt(refuse_some, "r", limit=2)
    assert await run.attempt(refuse_some, "r", limit=3) == 97
    assert await count_seen(database) == {0: 3, 1: 97}
    assert {row.key[0] for row in await Ledger(database).quarantine.list_rows(run_id="r")} == BAD


@job
async def misuse(ctx: JobContext, kind: str) -> None:
    """Fail in a batch for a reason that no row causes."""
    async for batch in ctx.chunks(select(Author), size=40, on_error="quarantine", quarantine_limit=50):
        sizes.append(len(batch))
        if kind == "retry":
            raise Retry(after=1)
        await batch.session.commit()


@pytest.mark.parametrize(("kind", "error"), [("retry", Retry), ("misuse", UsageError)])
async def test_what_no_row_is_to_blame_for_sets_none_aside(
    run: JobRunner, database: Database, kind: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await run(misuse, kind=kind)
    assert sizes == [40]
    assert await Ledger(database).quarantine.list_rows() == []


async def test_a_lock_that_is_held_for_too_long_halves_the_batch(
    run: JobRunner, database: Database, settings: Settings
) -> None:
    limits = settings.database.model_copy(update={"lock_timeout_seconds": 0.1})
    hurried = Database(settings.model_copy(update={"database": limits}))
    sizes_then: list[int] = []
    async with database.session() as holder:
        await holder.execute(text("SELECT * FROM author WHERE id = 30 FOR UPDATE"))
        walk = asyncio.create_task(JobRunner(hurried, settings)(count_all))
        while len(sizes_then) < 25:  # the rows before the locked one are done meanwhile
            sizes_then = [n for (n,) in await _done(database)]
        await holder.rollback()
        assert await walk == 100
    await hurried.close()
    assert await count_seen(database) == {1: 100}


async def _done(database: Database) -> Any:
    async with database.session() as session:
        return (await session.execute(select(Author.id).where(Author.seen == 1))).all()


async def test_a_row_whose_statement_always_times_out_goes_to_quarantine(run: JobRunner, database: Database) -> None:
    await hinder(database, "IF NEW.id = 50 THEN RAISE 'too slow' USING ERRCODE = '57014'; END IF;")

    @job
    async def count_or_set_aside(ctx: JobContext) -> int:
        async for batch in ctx.chunks(select(Author), size=10, on_error="quarantine", quarantine_limit=3):
            for author in batch:
                author.seen += 1
        return ctx.rows_done

    assert await run(count_or_set_aside) == 99
    assert await count_seen(database) == {0: 1, 1: 99}
    (row,) = await Ledger(database).quarantine.list_rows()
    assert row.key == [50]
    assert "too slow" in row.error
