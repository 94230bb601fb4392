"""Listeners that change statements (`retval=True`): they see each statement of a job's rows, also of the fast paths."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import delete, event, insert, select, text, update
from sqlalchemy.orm import Mapped, mapped_column

from tests.models import Base
from tests.support.contexts import MakeContext
from worker import JobContext
from worker.db.engine import Database


class Lodger(Base):
    """Walked."""

    __tablename__ = "lodger"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    seen: Mapped[int] = mapped_column(default=0)


class LodgerCopy(Base):
    """Filled from the other table."""

    __tablename__ = "lodger_copy"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    seen: Mapped[int] = mapped_column(default=0)


ROWS = 25
#: Above the number from which `bulk.insert` uses COPY.
MANY = 250


async def change_objects(ctx: JobContext) -> None:
    async for batch in ctx.chunks(select(Lodger), size=10):
        for lodger in batch:
            lodger.seen += 1


async def change_plain_rows(ctx: JobContext) -> None:
    async for batch in ctx.chunks(select(Lodger.id, Lodger.seen), size=10):
        await batch.bulk.update(Lodger, [{"id": row.id, "seen": row.seen + 1} for row in batch])


async def change_skipping(ctx: JobContext) -> None:
    async for batch in ctx.chunks(select(Lodger.id, Lodger.seen), size=10, skip_locked=True):
        await batch.bulk.update(Lodger, [{"id": key, "seen": seen + 1} for key, seen in batch])


async def change_streamed(ctx: JobContext) -> None:
    async for partition in ctx.stream(select(Lodger.id, Lodger.seen).order_by(Lodger.id), size=10):
        await partition.bulk.update(
            Lodger, {"id": [row.id for row in partition], "seen": [row.seen + 1 for row in partition]}
        )


async def sweep_update(ctx: JobContext) -> None:
    await ctx.sweep(update(Lodger).values(seen=Lodger.seen + 1), size=10)


async def sweep_delete(ctx: JobContext) -> None:
    await ctx.sweep(delete(Lodger), size=10)


async def sweep_insert(ctx: JobContext) -> None:
    chosen = select(Lodger.id, Lodger.name, Lodger.seen)
    await ctx.sweep(insert(LodgerCopy).from_select(["id", "name", "seen"], chosen), size=10)


async def insert_some(ctx: JobContext) -> None:
    await ctx.bulk.insert(Lodger, [{"id": 1_000 + n, "name": "new"} for n in range(10)])


async def insert_many(ctx: JobContext) -> None:
    await ctx.bulk.insert(Lodger, [{"id": 1_000 + n, "name": "new"} for n in range(MANY)])


async def upsert(ctx: JobContext) -> None:
    await ctx.bulk.upsert(Lodger, [{"id": n, "name": "new"} for n in range(1, 2 * ROWS)])


async def delete_keys(ctx: JobContext) -> None:
    await ctx.bulk.delete(Lodger, list(range(1, ROWS)))


JOBS = (
    change_objects,
    change_plain_rows,
    change_skipping,
    change_streamed,
    sweep_update,
    sweep_delete,
    sweep_insert,
    insert_some,
    insert_many,
    upsert,
    delete_keys,
)


def rewrite(_conn: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> tuple[str, Any]:
    """Send a statement about one table to another one, as for a tenant."""
    return re.sub(r"\blodger(_copy)?\b", r"other\1", statement), parameters


@contextmanager
def listening(database: Database) -> Iterator[None]:
    """Rewrite the statements of SQLAlchemy."""
    event.listen(database.engine.sync_engine, "before_cursor_execute", rewrite, retval=True)
    try:
        yield
    finally:
        event.remove(database.engine.sync_engine, "before_cursor_execute", rewrite)


async def fill(database: Database, lodger: str, seen: int = 0) -> None:
    """Fill one table, whose rows are changed, and empty its copy."""
    async with database.transaction() as session:
        await session.execute(text(f"TRUNCATE {lodger}"))
        copy = "lodger_copy" if lodger == "lodger" else "other_copy"
        await session.execute(text(f"TRUNCATE {copy}"))
        rows = f"SELECT n, 'a' || n, {seen} FROM generate_series(1, {ROWS}) AS n"
        await session.execute(text(f"INSERT INTO {lodger} (id, name, seen) {rows}"))


async def read(database: Database, *tables: str) -> list[list[str]]:
    """Return the rows of tables."""
    async with database.session() as session:
        return [
            list(await session.scalars(text(f"SELECT row(id, name, seen)::text FROM {table} ORDER BY id")))
            for table in tables
        ]


async def test_listeners_may_change_the_statements_of_every_loop_and_bulk_operation(
    context: MakeContext, database: Database
) -> None:
    async with database.transaction() as session:
        for table in ("other", "other_copy"):
            await session.execute(text(f"CREATE TABLE {table} (LIKE lodger INCLUDING ALL)"))
    for job in JOBS:
        await fill(database, "lodger")
        before = await read(database, "lodger", "lodger_copy")
        await job(context(job.__name__))
        expected = await read(database, "lodger", "lodger_copy")
        assert expected != before
        await fill(database, "lodger", seen=100)
        await fill(database, "other")
        before = await read(database, "lodger", "lodger_copy")
        with listening(database):
            await job(context(f"{job.__name__} rewritten"))
        assert await read(database, "other", "other_copy") == expected, job.__name__
        assert await read(database, "lodger", "lodger_copy") == before, job.__name__
