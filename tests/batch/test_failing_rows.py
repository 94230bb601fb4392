"""Rows that cannot be read end in quarantine, found by their key, whatever the loop; all other rows are done once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from sqlalchemy import (
    Integer,
    String,
    TypeDecorator,
    cast,
    func,
    select,
    text,
    update,
)

from tests.batch.failing_items import (
    KINDS,
    LIMIT_SECONDS,
    ROWS,
    SIZE,
    Item,
    damage,
    table_of_items,  # noqa: F401  (the fixture `items`)
)
from worker import JobContext, Settings, job
from worker.db.engine import Database
from worker.errors import LonghaulError
from worker.ledger import Ledger
from worker.testing.runner import JobRunner

#: Calls of the job's function that a walk may need, however many rows cannot be read.
MAX_ENTRIES = 5


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
    assert (", key 21" if limit else f", keys 1 to {SIZE}") in where, where
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
