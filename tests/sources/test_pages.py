"""`Pages` and `AsyncItems`: each item once over restarts and kills, and functions that go in a circle."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select

from tests.models import Author, authors
from tests.sources.killed import LAST, count, fetch_page
from tests.sources.test_files import begin, read, read_over_restarts
from tests.support.contexts import MakeContext
from tests.support.kills import run_under_kills
from worker import Client, JobContext, Settings, job
from worker.db.engine import Database
from worker.errors import CursorMismatch, UnsupportedStatement
from worker.ledger import Ledger
from worker.sources import AsyncItems, Pages
from worker.testing.runner import JobRunner

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("case", ["pages", pytest.param("items", marks=pytest.mark.long)])
async def test_each_item_is_written_once_over_kills(database: Database, settings: Settings, case: str) -> None:
    last = await run_under_kills(settings, "tests.sources.killed", case, kills=2, seed=5)
    assert last == f"done {LAST}"
    async with database.session() as session:
        assert list(await session.scalars(select(Author.id).order_by(Author.id))) == list(range(1, LAST + 1))


@pytest.mark.parametrize("make", [lambda: Pages(fetch_page, int), lambda: AsyncItems(count, int)])
async def test_each_item_is_read_once_over_restarts(context: MakeContext, make: Any) -> None:
    """Batches are smaller than pages, so that restarts are in the middle of a page as well."""
    assert await read_over_restarts(context, make) == list(range(1, LAST + 1))


async def test_a_page_is_a_batch_and_pages_without_items_are_passed(context: MakeContext) -> None:
    calls: list[datetime | None] = []

    async def by_day(day: datetime | None) -> tuple[list[str], datetime | None]:
        calls.append(day)
        number = 0 if day is None else (day - EPOCH).days
        items = [] if number in (0, 3) else [f"{number}-{n}" for n in range(number)]
        return items, EPOCH + timedelta(days=number + 1) if number < 5 else None

    ctx = context()
    sizes = [len(batch) async for batch in ctx.walk(Pages(by_day, datetime), size=100)]
    assert sizes == [1, 2, 4, 5]
    assert calls == [None, *(EPOCH + timedelta(days=day) for day in range(1, 6))]  # each page is fetched once
    await ctx._attempt.succeed()


@pytest.mark.parametrize("circle", [1, 2, 3, 7, 40])
async def test_a_function_that_returns_a_cursor_again_is_an_error(context: MakeContext, circle: int) -> None:
    async def turn(cursor: int | None) -> tuple[list[int], int | None]:
        at = cursor or 0
        return [at], at + 1 if at < 10 + circle else 11

    with pytest.raises(UnsupportedStatement, match=r"has returned the cursor .* the walk would never end"):
        await read(context(), Pages(turn, int), size=100)


@pytest.mark.parametrize("kind", ["pages", "items"])
async def test_a_cursor_of_another_type_is_an_error(context: MakeContext, kind: str) -> None:
    def make(type_: Any) -> Any:
        return Pages(fetch_page, type_) if kind == "pages" else AsyncItems(count, type_)

    with pytest.raises(UnsupportedStatement, match="is not of the given cursor_type"):
        await read(context(), make(datetime))
    await begin(context, lambda: make(int), size=100)
    with pytest.raises(CursorMismatch, match=r"is not of the given cursor_type; .* --from-start"):
        await read(context("run"), make(dict))


@job
async def refuse_some(ctx: JobContext, kind: str) -> int:
    """Write each number but two, until they are allowed."""
    source: Any = Pages(fetch_page, int) if kind == "pages" else AsyncItems(count, int)
    async for batch in ctx.walk(source, size=20, name="rows", on_error="quarantine", quarantine_limit=5):
        await batch.bulk.insert(Author, [authors(number)[-1] for number in batch])
        if REFUSED & set(batch):
            raise ValueError("unlucky")
    return ctx.rows_done


REFUSED: set[int] = set()


@pytest.mark.parametrize("kind", ["pages", "items"])
async def test_an_item_goes_to_quarantine_alone(
    database: Database, settings: Settings, client: Client, kind: str
) -> None:
    REFUSED.update({7, 33})
    try:
        assert await JobRunner(database, settings)(refuse_some, kind) == LAST - 2
    finally:
        REFUSED.clear()
    rows = await Ledger(database).quarantine.list_rows()
    keys = [[24, 8], [None, 6]] if kind == "pages" else [[32], [6]]
    assert sorted((row.key for row in rows), key=str) == keys


async def test_an_iterator_is_closed(context: MakeContext) -> None:
    closed: list[int] = []

    async def numbers(cursor: int | None) -> AsyncIterator[tuple[int, int]]:
        try:
            for number in range(100):
                yield number, number
        finally:
            closed.append(1)

    ctx = context()
    async for _ in ctx.walk(AsyncItems(numbers, int), size=10):
        break
    await ctx._attempt.succeed()
    assert closed == [1]


@pytest.mark.parametrize(
    "answer",
    [None, [1, 2], ([1], 2, 3), (None, None), (iter([1]), None), ({1: 2}, None)],
    ids=["none", "a list", "three values", "no items", "an iterator", "a dict"],
)
async def test_an_answer_of_another_form_is_an_error(context: MakeContext, answer: Any) -> None:
    async def fetch(cursor: int | None) -> Any:
        return answer

    with pytest.raises(UnsupportedStatement, match=r"fetch has returned a .*: return a list of items, and the cursor"):
        async for _ in context().walk(Pages(fetch, int)):
            pass


async def test_a_cursor_can_be_a_dict(context: MakeContext) -> None:
    async def fetch(cursor: dict[str, Any] | None) -> tuple[list[int], dict[str, Any] | None]:
        begin = 0 if cursor is None else cursor["after"]["n"]
        return list(range(begin, begin + 5)), ({"after": {"n": begin + 5}, "ü": [None]} if begin < 15 else None)

    assert await read_over_restarts(context, lambda: Pages(fetch, dict[str, Any])) == list(range(20))
