"""A walk over a view or a foreign table, for whose key the job vouches."""

from __future__ import annotations

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, select, text

from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.contexts import MakeContext
from worker import JobContext
from worker.db.engine import Database
from worker.errors import UnsupportedStatement

FOREIGN = """
CREATE EXTENSION IF NOT EXISTS file_fdw;
CREATE SERVER IF NOT EXISTS files FOREIGN DATA WRAPPER file_fdw;
CREATE FOREIGN TABLE shown (id int, seen int) SERVER files OPTIONS (program 'seq 1 30 | sed "s/$/,0/"', format 'csv')
"""


@pytest.mark.parametrize("sql", ["CREATE VIEW shown AS SELECT id, seen FROM author", FOREIGN], ids=["view", "foreign"])
async def test_a_key_of_a_view_or_a_foreign_table_can_be_vouched_for(
    context: MakeContext, database: Database, sql: str
) -> None:
    shown = Table("shown", MetaData(), Column("id", Integer), Column("seen", Integer))
    await fill_authors(database, 30)
    async with database.transaction() as session:
        for statement in sql.split(";"):
            await session.execute(text(statement))
    found: list[int] = []

    async def walk(ctx: JobContext, die_in: int | None = None) -> None:
        async for batch in ctx.chunks(select(shown.c.id), by=shown.c.id, unique=True, lock=False, size=7):
            if batch.number == die_in:
                raise RuntimeError("died")
            found.extend(batch)
        await ctx._attempt.succeed()

    first = context("run")
    with pytest.raises(RuntimeError):
        await walk(first, die_in=3)
    await first._attempt.fail()
    await first._attempt.close()
    await walk(context("run"))
    assert found == list(range(1, 31))
    with pytest.raises(UnsupportedStatement, match="unique=True vouches for the key that by= names"):
        context("other").chunks(select(shown.c.id), unique=True)


async def test_the_key_of_a_table_is_checked_whatever_the_job_vouches_for(context: MakeContext) -> None:
    with pytest.raises(UnsupportedStatement, match="no unique index"):
        async for _ in context().chunks(select(Author), by=Author.name, unique=True):
            pass
