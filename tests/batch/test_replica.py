"""`ctx.stream(replica=True)` without a replica; tests/faults/test_replica.py has one."""

from __future__ import annotations

import pytest
from sqlalchemy import func, insert, select, text

from tests.models import Author, authors
from tests.support.authors import count_seen
from worker import JobContext, Settings, job
from worker.db.engine import Database
from worker.testing.runner import JobRunner

read_at: list[bool] = []
fail_once: list[str] = []


@job
async def mark(ctx: JobContext) -> int:
    """Count each author, as they are on the replica."""
    rows = select(Author.id, Author.seen, func.pg_is_in_recovery()).order_by(Author.id)
    async for partition in ctx.stream(rows, size=10, replica=True):
        read_at.extend(there for _, _, there in partition)
        await partition.bulk.update(Author, [{"id": key, "seen": seen + 1} for key, seen, _ in partition])
        if partition.number == 3 and fail_once:
            raise RuntimeError(fail_once.pop())
    return ctx.rows_done


@pytest.fixture(autouse=True)
def nothing_read() -> None:
    read_at.clear()
    fail_once.clear()


async def add_authors(database: Database, first: int, last: int) -> None:
    async with database.transaction() as session:
        await session.execute(insert(Author), authors(last)[first - 1 :])


async def test_without_a_replica_the_walk_reads_where_it_writes(database: Database, settings: Settings) -> None:
    await add_authors(database, 1, 30)
    assert await JobRunner(database, settings)(mark) == 30
    assert read_at == [False] * 30


async def test_a_replica_that_was_promoted_does_not_hold_a_walk_up(database: Database, settings: Settings) -> None:
    await add_authors(database, 1, 30)
    there = settings.database.model_copy(update={"replica_url": settings.database.url})
    both = Database(settings.model_copy(update={"database": there}), "test")
    try:
        assert await JobRunner(both, settings)(mark) == 30
        assert both.replica is not None
        assert both.replica.engine.pool.checkedin() == 1  # type: ignore[attr-defined]
    finally:
        await both.close()


async def test_a_reader_that_is_lost_when_all_is_read_does_no_harm(database: Database, settings: Settings) -> None:
    await add_authors(database, 1, 30)

    @job
    async def cut_the_reader(ctx: JobContext) -> int:
        async for partition in ctx.stream(select(Author.id, Author.seen).order_by(Author.id), size=20):
            await partition.bulk.update(Author, [{"id": key, "seen": seen + 1} for key, seen in partition])
            if partition.number == 2:
                ended = await partition.session.scalar(
                    text(
                        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                        "WHERE state = 'idle in transaction' AND query LIKE '%author%' AND pid <> pg_backend_pid()"
                    )
                )
                assert ended == 1
        return ctx.rows_done

    assert await JobRunner(database, settings)(cut_the_reader) == 30
    assert await count_seen(database) == {1: 30}
    assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
