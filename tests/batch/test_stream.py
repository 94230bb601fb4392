"""Streams: the snapshot, resuming, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import UnaryExpression, delete, desc, func, select, text

from tests.models import Author, authors
from tests.support.authors import count_seen, fill_authors
from tests.support.contexts import MakeContext
from worker.db.engine import Database
from worker.errors import (
    LonghaulError,
    UnsupportedStatement,
)
from worker.settings import Settings


async def test_a_stream_of_groups_resumes_after_the_last_committed_partition(
    context: MakeContext, database: Database
) -> None:
    statement = select(Author.region, func.count()).group_by(Author.region).order_by(Author.region)
    first = context("run")
    await first.bulk.insert(Author, authors(70))
    with pytest.raises(RuntimeError):
        async for partition in first.stream(statement, size=2):
            await partition.bulk.update(Author, [{"id": region + 1, "seen": n} for region, n in partition])
            if partition.number == 3:
                raise RuntimeError
    await first._attempt.fail()
    await first._attempt.close()
    second = context("run")
    regions = []
    async for partition in second.stream(statement, size=2):
        regions.extend(region for region, _ in partition)
        await partition.bulk.update(Author, [{"id": region + 1, "seen": n} for region, n in partition])
    assert regions == [4, 5, 6]
    assert await count_seen(database) == {0: 63, 10: 7}


async def test_a_snapshot_that_is_too_old_is_given_up_for_a_new_one(
    context: MakeContext, database: Database, settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    ctx = context()
    await ctx.bulk.insert(Author, authors(40))
    ctx._attempt.settings = settings.model_copy(
        update={"batch": settings.batch.model_copy(update={"max_snapshot_seconds": 1e-9})}
    )
    found: list[int] = []
    with caplog.at_level("INFO"):
        async for partition in ctx.stream(select(Author.id).order_by(Author.id), size=10):
            found += partition
            if partition.number == 1:
                async with database.transaction() as session:
                    await session.execute(delete(Author).where(Author.id == 15))
    assert found == [id_ for id_ in range(1, 41) if id_ != 15]  # seen, as its snapshot is not the first one
    assert "renewing the snapshot of a stream" in caplog.text
    caplog.clear()
    rows = 0
    without_key = context()
    without_key._attempt.settings = ctx.settings
    async for partition in without_key.stream(select(Author.id), size=10, on_restart="start_over"):
        rows += len(partition)
    assert rows == 39
    assert caplog.text.count("holds VACUUM back") == 1


async def test_a_stream_that_cannot_resume_has_to_say_so(context: MakeContext) -> None:
    ctx = context()
    await ctx.bulk.insert(Author, authors(30))
    with pytest.raises(UnsupportedStatement, match="start_over"):
        async for _ in ctx.stream(select(Author)):
            pytest.fail("a partition was read")
    await ctx._attempt.fail()
    rows = 0
    async for partition in context().stream(select(Author.id), size=10, on_restart="start_over"):
        rows += len(partition)
    assert rows == 30


async def test_objects_of_a_stream_that_were_changed_are_an_error_and_not_lost(context: MakeContext) -> None:
    ctx = context()
    await ctx.bulk.insert(Author, authors(30))
    with pytest.raises(LonghaulError, match="read-only"):
        async for partition in ctx.stream(select(Author).order_by(Author.id), size=10):
            partition[0].seen = 5
    await ctx._attempt.fail()


async def test_stream_of_a_table_with_children_is_refused(context: MakeContext, database: Database) -> None:
    async with database.transaction() as session:
        await session.execute(text("CREATE TABLE author_child () INHERITS (author)"))
    try:
        with pytest.raises(UnsupportedStatement, match="other tables inherit from"):
            async for _ in context("run").stream(select(Author.id).order_by(Author.id)):
                pass
    finally:
        async with database.transaction() as session:
            await session.execute(text("DROP TABLE author_child"))


@pytest.mark.parametrize("order", ["label", desc("label"), "name"], ids=str)
async def test_stream_follows_an_order_that_is_named_by_a_text(
    context: MakeContext, database: Database, order: Any
) -> None:
    await fill_authors(database, 12)
    ctx, seen = context("run"), []
    rows = select(Author.id.label("label"), Author.name).order_by(order, Author.id)
    async for batch in ctx.stream(rows, size=5, on_restart="start_over"):
        seen += [row.label for row in batch]
    assert sorted(seen, reverse=isinstance(order, UnaryExpression)) == (sorted(seen) if order == "name" else seen)
    assert len(seen) == 12


def test_stream_refuses_a_text_that_names_no_column(context: MakeContext) -> None:
    with pytest.raises(UnsupportedStatement, match="names no column"):
        context("run").stream(select(Author.id).order_by("nothing"))


async def test_chunks_refuse_a_window_function_of_their_own(context: MakeContext, database: Database) -> None:
    numbered = select(Author.id, func.row_number().over(order_by=Author.id))
    with pytest.raises(UnsupportedStatement, match="window function"):
        async for _ in context("run").chunks(numbered):
            raise AssertionError
