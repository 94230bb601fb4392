"""The pytest plugin, used as in the tests of a job's author."""

from __future__ import annotations

import pytest
from sqlalchemy import MetaData, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from tests.models import Author, Base, Book
from tests.queue.test_client import add
from worker import Client, InvalidArguments, JobContext, job
from worker.testing.runner import JobRunner
from worker.types import Database

# Tables whose types SQLite has, too.
METADATA = MetaData()
for table in (Author.__table__, Book.__table__):
    table.to_metadata(METADATA)  # type: ignore[attr-defined]


@pytest.fixture
def longhaul_metadata() -> MetaData:
    """Override the fixture with tables, as the plugin documents."""
    return METADATA


@job
async def fail_once(ctx: JobContext, at: int | None) -> int:
    """Raise in the batch with this number."""
    async for batch in ctx.chunks(select(Author), size=10):
        for author in batch:
            author.seen += 1
        if batch.number == at:
            raise RuntimeError("once")
    return ctx.rows_done


@pytest.mark.usefixtures("database")  # with tables that no other test has left rows in
@pytest.mark.parametrize("time", [1, 2])
async def test_a_commit_in_the_postgresql_session_is_gone_in_the_next_test(pg_session: AsyncSession, time: int) -> None:
    pg_session.add(Author(name="mine", region=-1, code="a"))
    await pg_session.commit()
    pg_session.add(Author(name="mine", region=-1, code="b"))
    await pg_session.rollback()
    assert await pg_session.scalar(select(func.count()).where(Author.name == "mine")) == 1


@pytest.mark.parametrize("time", [1, 2])
async def test_the_sqlite_session_has_the_tables_and_no_rows_of_others(sqlite_session: AsyncSession, time: int) -> None:
    author = Author(name="one", region=1, code="a", seen=0)
    sqlite_session.add(author)
    await sqlite_session.commit()
    assert author.id is not None
    assert await sqlite_session.scalar(select(func.count()).select_from(Author)) == 1


async def test_the_queue_takes_jobs_without_a_server(queue: Client) -> None:
    run = await queue.enqueue(add.options(id="mine"), 1, b=2)
    again = await queue.enqueue(add.options(id="mine"), 1, b=2)
    assert (run.is_new, again.is_new, await run.status()) == (True, False, "waiting")
    with pytest.raises(InvalidArguments):
        await queue.enqueue("add", object())


async def test_run_job_runs_to_the_end_and_goes_on_after_a_failure(database: Database, run_job: JobRunner) -> None:
    async with database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with database.transaction() as session:
        session.add_all(Author(name="x", region=1, code=str(number), seen=0) for number in range(35))
    assert await run_job(add, 1) == 3
    with pytest.raises(RuntimeError, match="once"):
        await run_job.attempt(fail_once, "r", at=3)
    assert await run_job.attempt(fail_once, "r", at=None) == 35
    async with database.session() as session:
        assert (await session.scalars(select(Author.seen).distinct())).all() == [1]
