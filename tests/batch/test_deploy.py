"""A deploy in the middle of a walk: allowed and rejected changes of the code."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Select, select
from sqlalchemy.orm import selectinload

from tests.models import Author
from tests.support.authors import count_seen, fill_authors
from tests.support.contexts import MakeContext
from worker import JobContext
from worker.db.engine import Database
from worker.errors import CursorMismatch
from worker.ledger import Ledger


async def mark(ctx: JobContext, statement: Select[Any], *, stop_after: int = 99) -> None:
    """Count each author once."""
    async for batch in ctx.chunks(statement, size=10):
        for author in batch:
            author.seen += 1
        if batch.number > stop_after:
            raise RuntimeError


async def interrupted(context: MakeContext, database: Database) -> None:
    """Walk two batches with the old code."""
    await fill_authors(database, 50)
    ctx = context("run")
    with pytest.raises(RuntimeError):
        await mark(ctx, select(Author).where(Author.id > 0), stop_after=2)
    await ctx._attempt.fail()
    await ctx._attempt.close()


async def test_options_of_the_new_code_do_not_end_a_walk(context: MakeContext, database: Database) -> None:
    await interrupted(context, database)
    await mark(context("run"), select(Author).where(Author.id > 0).options(selectinload(Author.books)))
    assert await count_seen(database) == {1: 50}


async def test_another_value_in_where_needs_to_be_accepted(context: MakeContext, database: Database) -> None:
    await interrupted(context, database)
    changed = select(Author).where(Author.id > 1)
    ctx = context("run")
    with pytest.raises(CursorMismatch, match="--accept-statement") as caught:
        await mark(ctx, changed)
    run = ctx._attempt.ledger_run
    assert run is not None
    await run.finish("dead", error=str(caught.value))
    await ctx._attempt.close()
    assert await Ledger(database).retry("run", from_start=False, accept_statement=True) is not None
    again = context("run")
    with pytest.raises(RuntimeError):
        await mark(again, changed, stop_after=3)
    await again._attempt.fail()
    await again._attempt.close()
    with pytest.raises(CursorMismatch):  # accepted was that statement, and no third one
        await mark(context("run"), select(Author).where(Author.id > 2))
    assert await count_seen(database) == {0: 20, 1: 30}


async def test_a_job_can_accept_every_change(context: MakeContext, database: Database) -> None:
    await interrupted(context, database)
    ctx = context("run")
    ctx._attempt.accepts_statement_change = True
    await mark(ctx, select(Author).where(Author.id > 1))
    assert await count_seen(database) == {1: 50}


async def test_another_key_is_never_accepted(context: MakeContext, database: Database) -> None:
    await interrupted(context, database)
    ctx = context("run")
    ctx._attempt.accepts_statement_change = True
    with pytest.raises(CursorMismatch) as caught:
        async for _ in ctx.chunks(
            select(Author).where(Author.id > 0), by=[Author.region, Author.id], size=10, allow_sort=True
        ):
            pytest.fail("a batch was read")
    assert "--accept-statement" not in str(caught.value)
