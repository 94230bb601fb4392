"""Rows that cannot be read end in quarantine, found by their key, whatever the loop; all other rows are done once."""

from __future__ import annotations

import asyncio
import enum
import json
from collections.abc import AsyncIterator, Callable
from datetime import date, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import (
    JSON,
    Enum,
    ForeignKey,
    Integer,
    String,
    TypeDecorator,
    cast,
    delete,
    func,
    insert,
    literal,
    select,
    text,
    update,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    aliased,
    joinedload,
    load_only,
    mapped_column,
    relationship,
    selectinload,
)

from worker import JobContext, Settings, job
from worker.db.engine import Database
from worker.errors import LonghaulError
from worker.ledger import Ledger
from worker.ledger.records import QuarantinedRow
from worker.testing.runner import JobRunner

ROWS, SIZE = 30, 8
LIMIT_SECONDS = 60
#: Calls of the job's function that a walk may need, however many rows cannot be read.
MAX_ENTRIES = 5


class Mood(enum.Enum):
    """Has no member for every text in the table."""

    calm = "calm"


class Unspeakable(Exception):
    """An error that cannot be shown."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


class Picky(TypeDecorator[str]):
    """A type whose decoder raises."""

    impl = String
    cache_ok = True

    def process_result_value(self, value: str | None, dialect: object) -> str | None:
        if value == "bad":
            raise KeyError("no such value")
        if value == "unspeakable":
            raise Unspeakable
        return value


class Base(DeclarativeBase):
    """The tables of these tests."""


class Item(Base):
    """One column for each way in which a value cannot be read."""

    __tablename__ = "unreadable_item"

    id: Mapped[int] = mapped_column(primary_key=True)
    seen: Mapped[int] = mapped_column(default=0)
    at: Mapped[datetime | None]
    day: Mapped[date | None]
    span: Mapped[timedelta | None]
    mood: Mapped[Mood | None] = mapped_column(Enum(Mood, native_enum=False, length=10))
    picky: Mapped[str | None] = mapped_column(Picky())
    data: Mapped[Any] = mapped_column(JSON, nullable=True)
    number: Mapped[str | None]


class Day(Base):
    """Walked by a key that Python cannot hold."""

    __tablename__ = "unreadable_day"

    day: Mapped[date] = mapped_column(primary_key=True)
    seen: Mapped[int] = mapped_column(default=0)


#: What makes a row unreadable: the SQL of one value.
KINDS = {
    "timestamp after 9999": ("at", "timestamp '12000-01-01'"),
    "date after 9999": ("day", "date '12000-01-01'"),
    "interval": ("span", "interval '170000000 years'"),
    "enum": ("mood", "'wild'"),
    "decoder": ("picky", "'bad'"),
    "error without words": ("picky", "'unspeakable'"),
    "json": ("data", f"'{'9' * 5_000}'::json"),
    "expression": ("number", "'seven'"),
}
LOOPS = ["objects", "columns", "unlocked", "skip_locked", "stream of objects", "stream of columns"]
#: For tests of which two loops are enough in the short form.
EACH_LOOP = [
    pytest.param(loop, marks=[] if loop in ("columns", "stream of objects") else pytest.mark.long) for loop in LOOPS
]
PLACES = {"first": 1, "middle": 13, "last": ROWS}
SHORT = [
    ("timestamp after 9999", "objects", "first"),
    ("timestamp after 9999", "columns", "middle"),
    ("timestamp after 9999", "stream of columns", "last"),
    ("date after 9999", "skip_locked", "middle"),
    ("interval", "unlocked", "last"),
    ("enum", "stream of objects", "middle"),
    ("decoder", "objects", "last"),
    ("error without words", "skip_locked", "first"),
    ("json", "columns", "middle"),
    ("expression", "stream of columns", "first"),
    ("expression", "columns", "last"),
]


@pytest_asyncio.fixture
async def items(database: Database) -> AsyncIterator[None]:
    """The tables, with thirty items."""
    async with database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(
            text(
                f"INSERT INTO unreadable_item (id, seen, mood, number, picky, data) "
                f"SELECT n, 0, 'calm', '7', 'good', '{{}}' FROM generate_series(1, {ROWS}) n"
            ),
        )
    yield
    async with database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)


def make_loop(ctx: JobContext, loop: str, column: str, **options: Any) -> Any:
    """Return a loop over all items that reads a column."""
    value = cast(Item.number, Integer) if column == "number" else getattr(Item, column)
    columns = select(Item.id, value)
    objects = select(Item, cast(Item.number, Integer).label("whole")) if column == "number" else select(Item)
    match loop:
        case "objects":
            return ctx.chunks(objects, **options)
        case "columns":
            return ctx.chunks(columns, **options)
        case "unlocked":
            return ctx.chunks(objects, lock=False, **options)
        case "skip_locked":
            return ctx.chunks(columns, skip_locked=True, **options)
        case "stream of objects":
            return ctx.stream(objects.order_by(Item.id), **options)
        case _:
            return ctx.stream(columns.order_by(Item.id), **options)


async def damage(database: Database, kind: str, ids: list[int]) -> str:
    column, value = KINDS[kind]
    async with database.transaction() as session:
        sql = f"UPDATE unreadable_item SET {column} = {value} WHERE id = ANY(:ids)"
        await session.execute(text(sql), {"ids": ids})
    return column


async def count(batch: Any) -> None:
    found = [row[0] if hasattr(row, "_fields") else row for row in batch]
    ids = [one.id if isinstance(one, Item) else one for one in found]
    await batch.session.execute(
        update(Item).where(Item.id.in_(ids)).values(seen=Item.seen + 1).execution_options(synchronize_session=False)
    )


async def check_seen(database: Database, bad: list[int]) -> None:
    """Each bad row is in quarantine under its key, and each other row was done once."""
    async with database.session() as session:
        rows = (await session.execute(select(Item.id, Item.seen))).all()
    assert {row.id: row.seen for row in rows} == {key: 0 if key in bad else 1 for key in range(1, ROWS + 1)}
    quarantined = await Ledger(database).quarantine.list_rows()
    assert sorted(row.key for row in quarantined) == [[key] for key in bad]
    assert all(row.error for row in quarantined)


@pytest.mark.parametrize(
    ("kind", "loop", "place"),
    [
        pytest.param(kind, loop, place, marks=[] if (kind, loop, place) in SHORT else pytest.mark.long)
        for kind in KINDS
        for loop in LOOPS
        for place in PLACES
    ],
)
async def test_row_that_cannot_be_read_is_quarantined_alone(
    items: None, database: Database, settings: Settings, kind: str, loop: str, place: str
) -> None:
    bad = [PLACES[place]]
    column = await damage(database, kind, bad)
    entries = 0

    @job
    async def one(ctx: JobContext) -> int:
        nonlocal entries
        entries += 1
        async for batch in make_loop(ctx, loop, column, size=SIZE, on_error="quarantine", quarantine_limit=2):
            await count(batch)
        return ctx.rows_done

    async with asyncio.timeout(LIMIT_SECONDS):
        assert await JobRunner(database, settings)(one) == ROWS - 1
    assert entries == 1  # the body has not run for the row: the job is not called again
    await check_seen(database, bad)


@pytest.mark.parametrize("loop", EACH_LOOP)
async def test_rows_that_cannot_be_read_side_by_side_are_quarantined_each(
    items: None, database: Database, settings: Settings, loop: str
) -> None:
    bad = [1, 2, 3, 12, 13, 29, 30]
    column = await damage(database, "timestamp after 9999", bad)

    @job
    async def one(ctx: JobContext) -> int:
        async for batch in make_loop(ctx, loop, column, size=SIZE, on_error="quarantine", quarantine_limit=7):
            await count(batch)
        return ctx.rows_done

    async with asyncio.timeout(LIMIT_SECONDS):
        assert await JobRunner(database, settings)(one) == ROWS - len(bad)
    await check_seen(database, bad)


@pytest.mark.parametrize("loop", EACH_LOOP)
@pytest.mark.parametrize("limit", [0, 1])
async def test_more_unreadable_rows_than_the_limit_fail_the_attempt_at_their_keys(
    items: None, database: Database, settings: Settings, loop: str, limit: int
) -> None:
    column = await damage(database, "timestamp after 9999", [4, 21])
    options: dict[str, Any] = {"on_error": "quarantine", "quarantine_limit": limit} if limit else {}
    runner = JobRunner(database, settings)
    ctx = runner.context("test", "run")
    try:
        with pytest.raises(Exception, match=r".") as raised:
            async for batch in make_loop(ctx, loop, column, size=SIZE, **options):
                await count(batch)
    finally:
        await ctx._attempt.fail()
        where = ctx._attempt.where or ""
        await ctx._attempt.close()
    assert not isinstance(raised.value, LonghaulError)
    first, last = (21, 21) if limit else (1, SIZE)
    assert f", keys {first} to {last}" in where, where
    assert len(await Ledger(database).quarantine.list_rows()) == limit


@pytest.mark.parametrize("loop", EACH_LOOP)
async def test_statement_that_fails_for_every_row_quarantines_none(
    items: None, database: Database, settings: Settings, loop: str
) -> None:
    async with database.transaction() as session:
        await session.execute(text("ALTER TABLE unreadable_item DROP COLUMN at"))

    @job
    async def one(ctx: JobContext) -> int:
        async for batch in make_loop(ctx, loop, "at", size=SIZE, on_error="quarantine", quarantine_limit=9):
            await count(batch)
        return ctx.rows_done

    with pytest.raises(Exception, match=r"column .*at does not exist"):
        await JobRunner(database, settings)(one)
    assert await Ledger(database).quarantine.list_rows() == []


async def test_quarantined_unreadable_row_is_processed_once_it_is_corrected(
    items: None, database: Database, settings: Settings
) -> None:
    column = await damage(database, "enum", [5])

    @job
    async def one(ctx: JobContext) -> int:
        async for batch in make_loop(ctx, "objects", column, size=SIZE, on_error="quarantine", quarantine_limit=2):
            await count(batch)
        return ctx.rows_done

    runner = JobRunner(database, settings)
    assert await runner.attempt(one, "run") == ROWS - 1
    (row,) = await Ledger(database).quarantine.list_rows()
    assert (row.key, "LookupError" in row.error) == ([5], True)
    assert "process_result_value" in (row.traceback or "") or "LookupError" in (row.traceback or "")


async def test_locked_row_that_cannot_be_read_is_quarantined_in_the_second_pass(
    items: None, database: Database, settings: Settings
) -> None:
    column = await damage(database, "date after 9999", [3])
    async with database.session() as holder:
        await holder.execute(text("SELECT 1 FROM unreadable_item WHERE id IN (3, 4) FOR UPDATE"))

        @job
        async def one(ctx: JobContext) -> int:
            async for batch in make_loop(
                ctx, "skip_locked", column, size=SIZE, on_error="quarantine", quarantine_limit=2
            ):
                await count(batch)
                if batch.last_key == ROWS:
                    await holder.rollback()
            return ctx.rows_done

        async with asyncio.timeout(LIMIT_SECONDS):
            assert await JobRunner(database, settings)(one) == ROWS - 1
    await check_seen(database, [3])


class Relenting(TypeDecorator[str]):
    """Fails to decode "bad" a limited number of times."""

    impl = String
    cache_ok = True
    failures = 0

    def process_result_value(self, value: str | None, dialect: object) -> str | None:
        if value == "bad" and Relenting.failures:
            Relenting.failures -= 1
            raise ValueError("not yet")
        return value


@pytest.mark.parametrize("failures", [1, 2, 3, 4])
async def test_row_that_can_be_read_again_is_not_quarantined(
    items: None, database: Database, settings: Settings, failures: int
) -> None:
    """Reads of 8, 4, 2 and 1 rows fail, and the fifth read, by the key, does not."""
    await damage(database, "decoder", [1])
    Relenting.failures = failures

    @job
    async def one(ctx: JobContext) -> int:
        statement = select(Item.id, cast(Item.picky, Relenting))
        async for batch in ctx.chunks(statement, size=SIZE, on_error="quarantine", quarantine_limit=2):
            await count(batch)
        return ctx.rows_done

    async with asyncio.timeout(LIMIT_SECONDS):
        assert await JobRunner(database, settings)(one) == ROWS
    await check_seen(database, [])


@pytest.mark.parametrize(
    "rival", ["DELETE FROM unreadable_item WHERE id = 9", "UPDATE unreadable_item SET number = '1'"]
)
async def test_row_that_is_corrected_before_it_is_set_aside_is_processed(
    items: None, database: Database, settings: Settings, rival: str
) -> None:
    await damage(database, "expression", [9])

    @job
    async def one(ctx: JobContext) -> int:
        statement = select(Item.id, Item.number)
        walk = ctx.chunks(statement, size=SIZE, lock=False, on_error="quarantine", quarantine_limit=2)
        async for batch in walk:
            if len(batch) == 1 and batch[0][1] == "seven":
                async with ctx.transaction() as session:
                    await session.execute(text(rival))
            for row in batch:
                int(row[1])
            await count(batch)
        return ctx.rows_done

    async with asyncio.timeout(LIMIT_SECONDS):
        assert await JobRunner(database, settings)(one) == ROWS - rival.startswith("DELETE")
    assert await Ledger(database).quarantine.list_rows() == []


async def test_row_that_changes_at_each_attempt_is_quarantined_nevertheless(
    items: None, database: Database, settings: Settings
) -> None:
    entries = 0

    @job
    async def one(ctx: JobContext) -> int:
        nonlocal entries
        entries += 1
        statement = select(Item.id, func.random())
        async for batch in ctx.chunks(statement, size=SIZE, on_error="quarantine", quarantine_limit=2):
            if any(row[0] == 9 for row in batch):
                raise ValueError("nine")
            await count(batch)
        return ctx.rows_done

    async with asyncio.timeout(LIMIT_SECONDS):
        assert await JobRunner(database, settings)(one) == ROWS - 1
    await check_seen(database, [9])
    assert entries <= MAX_ENTRIES + 2


# --- statements of other shapes


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
    "two columns": lambda ctx, options: ctx.chunks(select(Item.at), by=[Item.seen.desc(), Item.id], **options),
    "two directions": lambda ctx, options: ctx.chunks(select(Item), by=[Item.id.desc(), Item.seen], **options),
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


# --- keys that Python cannot hold


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
