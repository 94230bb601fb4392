"""Functions of `Pages` and `AsyncItems` that return something else than they have to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.contexts import MakeContext
from worker.errors import UnsupportedStatement
from worker.sources import AsyncItems, Pages


async def _text(cursor: Any) -> Any:
    return "abc", None


def _plain(cursor: Any) -> Any:
    return [1], None


async def _yields(cursor: Any) -> AsyncIterator[int]:
    yield 1


async def _not_finite(cursor: Any) -> Any:
    return [1], float("nan")


async def _not_storable(cursor: Any) -> Any:
    return [1], "a\0b"


@pytest.mark.parametrize(
    ("fetch", "cursor_type", "message"),
    [
        (_text, int, "a str as its items"),
        (_plain, int, "a tuple that cannot be awaited"),
        (_yields, int, "take AsyncItems"),
        (_not_finite, float, "the cursor nan"),
        (_not_storable, str, r"U\+0000"),
    ],
)
async def test_pages_of_another_shape_are_an_error(
    context: MakeContext, fetch: Any, cursor_type: Any, message: str
) -> None:
    with pytest.raises(UnsupportedStatement, match=message):
        async for _ in context().walk(Pages(fetch, cursor_type)):
            pytest.fail("no page can be read")


@pytest.mark.parametrize("length", [2, 3, 10])
async def test_no_page_of_a_circle_is_processed_twice(context: MakeContext, length: int) -> None:
    async def turn(cursor: int | None) -> tuple[list[int], int | None]:
        at = cursor or 0
        return [at], at + 1 if at < length else 1

    seen: list[int] = []
    with pytest.raises(UnsupportedStatement, match="the walk would never end"):
        async for batch in context().walk(Pages(turn, int)):
            seen += batch
    assert seen == list(range(length))


async def _coroutine(cursor: Any) -> Any:
    return [(1, 2)]


def _list(cursor: Any) -> Any:
    return [(1, 2)]


async def _without_cursor(cursor: Any) -> AsyncIterator[Any]:
    yield 1, None


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (_coroutine, "a coroutine instead of an async iterator"),
        (_list, "a list instead of an async iterator"),
        (_yields, "a int instead of a pair"),
        (_without_cursor, "the cursor None"),
    ],
)
async def test_items_of_another_shape_are_an_error(context: MakeContext, factory: Any, message: str) -> None:
    with pytest.raises(UnsupportedStatement, match=message):
        async for _ in context().walk(AsyncItems(factory, int | None)):  # type: ignore[arg-type]
            pytest.fail("no item can be read")


class _Numbers:
    """Makes a new iterator for each loop over it."""

    def __init__(self, cursor: int | None) -> None:
        self._begin = cursor or 0

    async def __aiter__(self) -> AsyncIterator[tuple[int, int]]:
        for number in range(self._begin, 5):
            yield number, number + 1


async def test_an_iterable_is_read_once(context: MakeContext) -> None:
    numbers: Any = _Numbers
    assert [row async for batch in context().walk(AsyncItems(numbers, int), size=2) for row in batch] == [0, 1, 2, 3, 4]
