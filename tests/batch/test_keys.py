"""Walks by keys of every type that a cursor can hold, resumed in the middle; what cannot be a key is refused."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import (
    CHAR,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Integer,
    MetaData,
    Numeric,
    SmallInteger,
    String,
    Table,
    Text,
    Uuid,
    delete,
    insert,
    select,
    text,
    update,
)

from tests.conftest import MakeContext
from worker import StatementRefused
from worker.db.engine import Database

COUNT = 60
BEGIN = dt.datetime(2026, 3, 29, 0, 59, 59, 999_990)
ODD = ["", " ", "a", "A", "ä", "Z", "ß", "'", '"', "\\", "%s", ":x", "{", "日本", "a b", "a\tb", "\U0001f600"]

KEYS: dict[str, tuple[Any, list[Any]]] = {
    "smallint": (SmallInteger, list(range(-30, 30))),
    "integer": (Integer, [n * 71_582_788 - 2**31 for n in range(COUNT)]),
    "bigint": (BigInteger, [n * 10**17 - 2**62 for n in range(COUNT)]),
    "text": (Text, [*ODD, *(f"{n:02}" for n in range(COUNT - len(ODD)))]),
    "varchar": (String(20), [*ODD, *(f"{n}" for n in range(COUNT - len(ODD)))]),
    "uuid": (Uuid, [uuid.UUID(int=n * 2**121 + n) for n in range(COUNT)]),
    "date": (Date, [dt.date(1, 1, 1) + dt.timedelta(days=n * 50_000) for n in range(COUNT)]),
    "timestamp": (DateTime, [BEGIN + dt.timedelta(microseconds=n) for n in range(COUNT)]),
    "timestamptz": (
        DateTime(timezone=True),
        [BEGIN.replace(tzinfo=dt.UTC) + dt.timedelta(microseconds=n) for n in range(COUNT)],
    ),
    "numeric": (Numeric(38, 20), [Decimal(n - 30) / Decimal(10**19) for n in range(COUNT)]),
    "numeric of any scale": (Numeric, [Decimal(10) ** (n - 30) for n in range(COUNT)]),
}


@pytest_asyncio.fixture(params=KEYS)
async def table(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[Table]:
    """A table whose key is of that type, in a schema and with names that have to be quoted."""
    type_, values = KEYS[request.param]
    key, done = Column("The Key", type_, key="key", primary_key=True), Column("done", Integer, nullable=False)
    found = Table("Keyed Rows", MetaData(schema="Odd Schema"), key, done)
    async with database.engine.begin() as connection:
        await connection.execute(text('DROP SCHEMA IF EXISTS "Odd Schema" CASCADE'))
        await connection.execute(text('CREATE SCHEMA "Odd Schema"'))
        await connection.run_sync(found.metadata.create_all)
        await connection.execute(insert(found), [{"key": value, "done": 0} for value in values])
    yield found
    async with database.engine.begin() as connection:
        await connection.execute(text('DROP SCHEMA "Odd Schema" CASCADE'))


@pytest.mark.parametrize("direction", ["asc", "desc"])
async def test_every_row_is_done_once_over_a_restart(
    context: MakeContext, database: Database, table: Table, direction: str
) -> None:
    by = table.c.key.desc() if direction == "desc" else table.c.key
    walked = []
    for _ in range(2):
        ctx = context("run")
        async for batch in ctx.chunks(select(table.c.key, table.c.done), by=by, size=7):
            if batch.number == 4 and len(walked) == 21:
                walked.append(None)  # the first try ends here, in its fourth batch
                break_off = ctx
                await break_off.fail()
                break
            keys = [key for key, _ in batch]
            assert (batch.first_key, batch.last_key) == (keys[0], keys[-1])
            walked += keys
            rows = [{"key": key, "done": done + 1} for key, done in batch]
            assert await batch.bulk.update(table, rows) == len(rows)
        else:
            await ctx.succeed()
        await ctx.close()
    walked.remove(None)
    async with database.session() as session:
        ordered = (await session.scalars(select(table.c.key).order_by(by))).all()
        assert walked == list(ordered)
        assert (await session.scalars(select(table.c.done).distinct())).all() == [1]


async def test_sweeps_and_streams_walk_by_it_too(context: MakeContext, database: Database, table: Table) -> None:
    ctx = context()
    assert await ctx.sweep(update(table).values(done=table.c.done + 1), size=7) == COUNT
    seen = []
    async for partition in ctx.stream(select(table.c.key, table.c.done).order_by(table.c.key), size=7):
        seen += partition
    assert len({key for key, _ in seen}) == len(seen) == COUNT
    assert {done for _, done in seen} == {1}
    assert await ctx.sweep(delete(table), by=table.c.key.desc(), size=7) == COUNT


@pytest.mark.parametrize("type_", [Boolean, CHAR(4)])
async def test_a_type_whose_order_a_cursor_cannot_hold_is_refused(context: MakeContext, type_: Any) -> None:
    table = Table("odd", MetaData(), Column("key", type_, primary_key=True))
    with pytest.raises(StatementRefused, match="a cursor cannot hold"):
        context().chunks(select(table.c.key))
