"""Sweeps: ranges of a key, changed inside of the server."""

from __future__ import annotations

import pytest
from sqlalchemy import delete, insert, select, update
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.orm import aliased

from tests.models import Author, Book, authors
from tests.support.authors import count_seen
from tests.support.contexts import MakeContext
from tests.support.controls import StopsAfter
from worker.db.engine import Database
from worker.errors import (
    AttemptReleased,
    UnsupportedStatement,
)


async def test_a_sweep_changes_what_matches_in_ranges(context: MakeContext, database: Database) -> None:
    ctx = context()
    await ctx.bulk.insert(Author, authors(100))
    assert await ctx.sweep(update(Author).where(Author.region == 3).values(seen=1), size=30) == 14
    assert await ctx.sweep(delete(Author).where(Author.seen == 1), size=30) == 14
    assert await count_seen(database) == {0: 86}


async def test_a_sweep_copies_from_one_table_to_another(context: MakeContext, database: Database) -> None:
    ctx = context("copy")
    await ctx.bulk.insert(Author, authors(100))
    source = aliased(Author)
    titles = select(source.id, source.name + "!").where(source.region != 3)
    copy = insert(Book).from_select(["author_id", "title"], titles)
    with pytest.raises(AttemptReleased):
        ctx._attempt.control = StopsAfter(2)
        await ctx.sweep(copy, size=30)
    await ctx._attempt.fail()
    await ctx._attempt.close()
    assert await context("copy").sweep(copy, size=30) == 86
    async with database.session() as session:
        books = (await session.execute(select(Book.author_id, Book.title).order_by(Book.author_id))).all()
    assert books == [(n, f"n{n}!") for n in range(1, 101) if n % 7 != 3]
    into_itself = pg_insert(Author).from_select(
        ["id", "name", "region", "code", "seen"],
        select(Author.id + 1000, Author.name, Author.region, Author.code + "x", 5),
    )
    assert await context().sweep(into_itself.on_conflict_do_nothing(), size=7) == 100
    with pytest.raises(UnsupportedStatement, match="LIMIT"):
        await context().sweep(insert(Book).from_select(["author_id"], select(Author.id).limit(5)))
    with pytest.raises(UnsupportedStatement, match="takes a select"):
        await context().sweep(insert(Book).values(title="x"))


async def test_a_sweep_that_moves_its_own_key_is_refused(context: MakeContext) -> None:
    with pytest.raises(UnsupportedStatement, match="walks by"):
        await context().sweep(update(Author).values(id=Author.id + 1))
