"""Statements that a walk refuses before its first batch, and operations that its body may not do."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, delete, func, select
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import aliased

from tests.batch.marked_rows import fill, mark
from tests.models import Author, Book
from tests.support.contexts import MakeContext
from worker.errors import (
    CursorMismatch,
    LonghaulError,
    UnsupportedStatement,
    UsageError,
)


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        (lambda other: select(Author.id).join(other, other.region == Author.region), "more than one plain table"),
        (lambda other: select(Author.id, func.generate_series(1, 2)), "returns several rows"),
        (lambda other: select(Author.id).where(Author.id == other.id), "more than one plain table"),
    ],
)
async def test_a_stream_whose_key_can_repeat_does_not_resume(context: MakeContext, statement: Any, reason: str) -> None:
    ctx = context()
    await fill(ctx, 3)
    with pytest.raises(UnsupportedStatement, match=reason):
        async for _ in ctx.stream(statement(aliased(Author)).order_by(Author.id)):
            pytest.fail("a partition was read")
    await ctx._attempt.fail()


async def test_groups_behind_an_outer_join_can_be_of_null_and_do_not_resume(context: MakeContext) -> None:
    ctx = context()
    groups = select(Book.author_id, func.count()).select_from(Author).outerjoin(Book).group_by(Book.author_id)
    with pytest.raises(UnsupportedStatement, match="outer join"):
        async for _ in ctx.stream(groups.order_by(Book.author_id)):
            pytest.fail("a partition was read")
    await ctx._attempt.fail()


@pytest.mark.parametrize("verb", ["commit", "rollback", "close"])
async def test_a_batch_cannot_be_ended_by_its_body(context: MakeContext, verb: str) -> None:
    ctx = context()
    await fill(ctx, 10)
    with pytest.raises(LonghaulError, match=verb):
        async for batch in ctx.chunks(select(Author)):
            await getattr(batch.session, verb)()
    await ctx._attempt.fail()


async def test_a_loop_is_for_async_for_alone(context: MakeContext) -> None:
    for loop in (context().chunks(select(Author)), context().stream(select(Author.id).order_by(Author.id))):
        with pytest.raises(UsageError, match="walked by `async for`, not by `for`"):
            for _ in loop:
                pass
        with pytest.raises(UsageError, match="walked by `async for`, not awaited"):
            await loop


@pytest.mark.parametrize("kind", ["chunks", "stream", "groups", "sweep"])
async def test_a_table_that_is_not_there_is_said_to_be_missing(context: MakeContext, kind: str) -> None:
    nowhere = Table("nowhere", MetaData(), Column("id", Integer, primary_key=True))
    ctx = context()
    with pytest.raises(UnsupportedStatement, match="there is no table nowhere in the database: create it"):
        if kind == "sweep":
            await ctx.sweep(delete(nowhere))
        elif kind == "chunks":
            async for _ in ctx.chunks(select(nowhere.c.id)):
                pass
        else:
            statement = select(nowhere.c.id).order_by(nowhere.c.id)
            async for _ in ctx.stream(statement.group_by(nowhere.c.id) if kind == "groups" else statement):
                pass
    await ctx._attempt.fail()


async def test_a_loop_inside_a_loop_is_refused(context: MakeContext) -> None:
    ctx = context()
    await fill(ctx, 10)
    with pytest.raises(LonghaulError, match="cannot be nested"):
        async for _ in ctx.chunks(select(Author)):
            async for _ in ctx.chunks(select(Author)):
                pass
    await ctx._attempt.fail()


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        (select(Author).limit(1), "LIMIT"),
        (select(Author).offset(1), "OFFSET"),
        (select(Author).order_by(Author.name), "ORDER BY"),
        (select(Author).group_by(Author.id), "GROUP BY"),
        (select(Author).ext(distinct_on(Author.name)), "DISTINCT"),
        (select(Author).distinct(), "DISTINCT"),
    ],
)
async def test_statements_that_cannot_be_walked_are_refused(context: MakeContext, statement: Any, reason: str) -> None:
    with pytest.raises(UnsupportedStatement, match=reason):
        context().chunks(statement)


@pytest.mark.parametrize(("by", "reason"), [(Author.name, "no unique index"), (Author.nickname, "can be null")])
async def test_a_key_that_cannot_order_a_walk_is_refused_before_the_first_batch(
    context: MakeContext, by: Any, reason: str
) -> None:
    ctx = context()
    await fill(ctx, 3)
    with pytest.raises(UnsupportedStatement, match=reason):
        async for _ in ctx.chunks(select(Author), by=by):
            pytest.fail("a batch was read")
    await ctx._attempt.fail()


async def test_a_cursor_of_another_statement_is_refused(context: MakeContext) -> None:
    ctx = context("run")
    await fill(ctx, 30)
    with pytest.raises(RuntimeError):
        await mark(ctx, stop_after=1)
    await ctx._attempt.fail()
    await ctx._attempt.close()
    after_deploy = context("run")
    with pytest.raises(CursorMismatch, match="--from-start"):
        async for _ in after_deploy.chunks(select(Author).where(Author.region == 1), size=10):
            pytest.fail("a batch was read")
    await after_deploy._attempt.fail()


@pytest.mark.parametrize("is_entity", [False, True])
async def test_the_rows_of_a_with_query_are_walked_without_a_lock_alone(context: MakeContext, is_entity: bool) -> None:
    ctx, refused = context(), context()
    await fill(ctx, 7)
    some = select(Author).where(Author.id > 3).cte("some")
    rows: Any = select(aliased(Author, some)) if is_entity else select(some.c.id)
    with pytest.raises(UnsupportedStatement, match="the rows of a WITH query cannot be locked"):
        async for _ in refused.chunks(rows):
            pytest.fail("a batch was read")
    await refused._attempt.fail()
    async for _ in ctx.chunks(rows, size=2, lock=False):
        pass
    assert ctx.rows_done == 4
    await ctx._attempt.fail()
