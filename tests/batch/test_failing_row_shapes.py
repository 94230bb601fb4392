"""Rows that cannot be read, in joins, groups and sweeps, and keys that Python cannot hold."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import date, datetime
from typing import Any

import pytest
from sqlalchemy import (
    ForeignKey,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.orm import (
    Mapped,
    aliased,
    joinedload,
    load_only,
    mapped_column,
    relationship,
    selectinload,
)

from tests.batch.failing_items import (
    KINDS,
    LIMIT_SECONDS,
    ROWS,
    SIZE,
    Base,
    Item,
    damage,
    table_of_items,  # noqa: F401  (the fixture `items`)
)
from worker import JobContext, Settings, job
from worker.db.engine import Database
from worker.ledger import Ledger
from worker.ledger.records import QuarantinedRow
from worker.testing.runner import JobRunner


class Day(Base):
    """Walked by a key that Python cannot hold."""

    __tablename__ = "unreadable_day"

    day: Mapped[date] = mapped_column(primary_key=True)
    seen: Mapped[int] = mapped_column(default=0)


class Part(Base):
    """Belongs to an item."""

    __tablename__ = "unreadable_part"

    id: Mapped[int] = mapped_column(primary_key=True)
    item_id: Mapped[int] = mapped_column(ForeignKey("unreadable_item.id"))
    at: Mapped[datetime | None]


Item.parts = relationship(Part)  # type: ignore[attr-defined]

SHAPES: dict[str, Callable[[JobContext, dict[str, Any]], Any]] = {
    "groups": lambda ctx, options: ctx.stream(
        select(Item.id, func.max(Item.at)).group_by(Item.id).order_by(Item.id), **options
    ),
    "downwards": lambda ctx, options: ctx.stream(select(Item).order_by(Item.id.desc()), **options),
    "two columns": lambda ctx, options: ctx.chunks(
        select(Item.at), by=[Item.seen.desc(), Item.id], allow_sort=True, **options
    ),
    "two directions": lambda ctx, options: ctx.chunks(
        select(Item), by=[Item.id.desc(), Item.seen], allow_sort=True, **options
    ),
    "join": lambda ctx, options: ctx.chunks(select(Item.id, Item.at, Part.id).join(Part), by=Item.id, **options),
    "join unlocked": lambda ctx, options: ctx.chunks(
        select(Item.at, Part.at).join(Part), by=Item.id, lock=False, **options
    ),
    "alias": lambda ctx, options: ctx.chunks(select(aliased(Item)), **options),
    "related objects": lambda ctx, options: ctx.chunks(
        select(Item).options(load_only(Item.id), selectinload(Item.parts)), **options
    ),
    "joined objects": lambda ctx, options: ctx.chunks(
        select(Item).options(load_only(Item.id), joinedload(Item.parts)), lock=False, **options
    ),
    "size of one": lambda ctx, options: ctx.chunks(select(Item), **options | {"size": 1}),
    "stream of one": lambda ctx, options: ctx.stream(select(Item).order_by(Item.id), **options | {"size": 1}),
    "size of all": lambda ctx, options: ctx.chunks(select(Item), **options | {"size": 1_000}),
    "auto": lambda ctx, options: ctx.chunks(select(Item), **options | {"size": "auto"}),
}


@pytest.mark.parametrize(
    "shape",
    [
        pytest.param(shape, marks=[] if shape in ("groups", "join", "stream of one") else pytest.mark.long)
        for shape in SHAPES
    ],
)
async def test_row_that_cannot_be_read_is_found_in_statements_of_other_shapes(
    items: None, database: Database, settings: Settings, shape: str
) -> None:
    bad = [1, 13, ROWS]
    await damage(database, "timestamp after 9999", bad)
    async with database.transaction() as session:
        values = "SELECT id * 10 + n, id, at FROM unreadable_item, generate_series(1, 2) n"
        await session.execute(text(f"INSERT INTO unreadable_part (id, item_id, at) {values}"))

    @job
    async def one(ctx: JobContext) -> int:
        async for _ in SHAPES[shape](ctx, {"size": SIZE, "on_error": "quarantine", "quarantine_limit": 3}):
            pass
        return ctx.rows_done

    async with asyncio.timeout(LIMIT_SECONDS):
        rows = await JobRunner(database, settings)(one)
    assert rows == (ROWS - len(bad)) * (2 if shape.startswith("join") and "objects" not in shape else 1)
    found = [row.key[-1] if shape == "two columns" else row.key[0] for row in await quarantined(database)]
    assert sorted(found) == bad


async def quarantined(database: Database) -> list[QuarantinedRow]:
    return await Ledger(database).quarantine.list_rows()


@pytest.mark.parametrize("loop", ["chunks", "skip_locked", "stream"])
async def test_key_that_cannot_be_read_is_quarantined_as_the_server_writes_it(
    items: None, database: Database, settings: Settings, loop: str
) -> None:
    async with database.transaction() as session:
        sql = "INSERT INTO unreadable_day (day, seen) SELECT date '9999-12-20' + n, 0 FROM generate_series(1, 30) n"
        await session.execute(text(sql))
    unreadable = [f"10000-01-{n:02}" for n in range(1, 20)]

    @job
    async def one(ctx: JobContext) -> int:
        statement, options = select(Day.day), {"size": 8, "on_error": "quarantine", "quarantine_limit": 20}
        if loop == "stream":
            walk = ctx.stream(statement.order_by(Day.day), **options)
        else:
            walk = ctx.chunks(statement, skip_locked=loop == "skip_locked", **options)
        async for _ in walk:
            pass
        return ctx.rows_done

    async with asyncio.timeout(LIMIT_SECONDS):
        assert await JobRunner(database, settings)(one) == 11
    rows = await Ledger(database).quarantine.list_rows()
    assert sorted(row.key[0] for row in rows) == unreadable


@pytest.mark.parametrize("verb", ["update", "delete", "insert"])
async def test_sweep_reads_no_value_and_no_key(items: None, database: Database, settings: Settings, verb: str) -> None:
    for kind in KINDS:
        await damage(database, kind, [5, 13])
    async with database.transaction() as session:
        sql = "INSERT INTO unreadable_day (day, seen) SELECT date '9999-12-20' + n, 0 FROM generate_series(1, 30) n"
        await session.execute(text(sql))

    @job
    async def one(ctx: JobContext) -> list[int]:
        if verb == "update":
            done = [await ctx.sweep(update(Item).values(seen=Item.seen + 1), size=SIZE)]
            done.append(await ctx.sweep(update(Day).values(seen=Day.seen + 1), size=SIZE))
        elif verb == "delete":
            done = [await ctx.sweep(delete(Item), size=SIZE), await ctx.sweep(delete(Day), size=SIZE)]
        else:
            rows = select(Item.id + 100, Item.at, literal(1))
            done = [await ctx.sweep(insert(Item).from_select(["id", "at", "seen"], rows), size=SIZE, by=Item.id)]
            days = select(Day.day + 100, literal(1))
            done.append(await ctx.sweep(insert(Day).from_select(["day", "seen"], days), size=SIZE, by=Day.day))
        return done

    async with asyncio.timeout(LIMIT_SECONDS):
        assert await JobRunner(database, settings)(one) == [ROWS, 30]


def test_json_number_is_beyond_the_decoder() -> None:
    with pytest.raises(ValueError, match="4300 digits"):
        json.loads("9" * 5_000)
