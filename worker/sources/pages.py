"""`Pages` and `AsyncItems`: the pages of an API, and an async iterator that can begin after a cursor."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from worker.batch.source import Bounds, OpenStep, Page
from worker.batch.transaction import BatchTransaction
from worker.errors import CursorMismatch, UnsupportedStatement

T = TypeVar("T")
C = TypeVar("C")

_KNOWN_CURSORS = 10_000


class _Cursors(Generic[C]):
    """Cursors of an application as JSON values.

    Args:
        kind: The kind of the source, for errors.
        cursor_type: The type of the cursors.
    """

    def __init__(self, kind: str, cursor_type: type[C]) -> None:
        self._kind = kind
        self._adapter: TypeAdapter[C] = TypeAdapter(cursor_type)

    def dump(self, cursor: C) -> Any:
        """Return a cursor as a JSON value, from which `load` makes the same cursor.

        Raises:
            UnsupportedStatement: It has another type.
        """
        try:
            value = self._adapter.dump_python(cursor, mode="json", warnings="error")
            if "\\u0000" in json.dumps(value, allow_nan=False):
                raise ValueError("PostgreSQL stores no text with the character U+0000")
            return value
        except (PydanticSerializationError, ValueError, TypeError) as error:
            raise UnsupportedStatement(
                f"{self._kind}: the cursor {cursor!r} is not of the given cursor_type: {error}"
            ) from error

    def dump_of_item(self, name: str, cursor: C) -> Any:
        """Return the cursor of an item as a JSON value; see `dump`.

        Raises:
            UnsupportedStatement: It has another type, or is None, behind which the walk would begin again.
        """
        value = self.dump(cursor)
        if value is None:
            raise UnsupportedStatement(
                f"{self._kind}: {name} has yielded an item with the cursor None, which stands for the beginning: yield "
                f"pairs of an item and the cursor behind it"
            )
        return value

    def load(self, value: Any, run_id: str) -> C | None:
        """Return a cursor from a JSON value; None for None.

        Raises:
            CursorMismatch: It has another type.
        """
        try:
            return None if value is None else self._adapter.validate_python(value)
        except ValidationError as error:
            raise CursorMismatch(
                f"{self._kind}: the cursor {value!r} in the ledger is not of the given cursor_type; restore the "
                f"type, or start over: worker retry {run_id} --from-start"
            ) from error


class Pages(Generic[T, C]):
    """The pages of an API: `ctx.walk(Pages(fetch_users, str))`.

    A page is one batch. If it has more items than `size`, it is several batches; then, and where the quarantine halves
    a batch, a restart fetches the page again and skips the items that are done, so the API must return the same page
    for the same cursor.

    Args:
        fetch: An async function that takes a cursor (None for the first page), and returns the items and the cursor of
            the next page, or None if there is none.
        cursor_type: The type of the cursor, which pydantic converts to JSON and back.
        name: A name that distinguishes this walk from others. Default: the function's name.

    Raises:
        UnsupportedStatement: The function returns a cursor that it has returned before, so that the walk would never
            end; or a cursor of another type.
        CursorMismatch: The cursor in the ledger is of another type.
    """

    kind = "pages"

    def __init__(
        self,
        fetch: Callable[[C | None], Awaitable[tuple[Sequence[T], C | None]]],
        cursor_type: type[C],
        *,
        name: str | None = None,
    ) -> None:
        self._fetch = fetch
        self._cursors = _Cursors(self.kind, cursor_type)
        self.fingerprint = name or _name(fetch)
        self._only: list[list[Any]] | None = None
        self._run_id = ""
        self._current: tuple[Any, Sequence[T], Any] | None = None  # cursor, items and next cursor, as JSON values
        self._known: set[bytes] = set()  # digests of the first cursors: a short circle repeats no page
        # A cursor that was seen. It is replaced after 1, 2, 4, ... pages, so that a circle of any length is found.
        self._seen: Any = None
        self._pages = 0
        self._replace_after = 1

    async def open(self, step: OpenStep) -> Bounds:
        """Begin at the cursor of the step."""
        self._only, self._run_id = step.only_keys, step.run_id
        self._current, self._seen, self._pages, self._replace_after = None, None, 0, 1
        self._known.clear()
        return Bounds() if self._only is None else Bounds(total=len(self._only))

    async def fetch(self, transaction: BatchTransaction, cursor: Any, size: int) -> Page[T] | None:
        """Return the next page, or the next part of it."""
        if self._only is not None:
            return await self._fetch_retried(cursor or 0)
        place, done = (None, 0) if cursor is None else (cursor["page"], cursor["done"])
        items, following = await self._load(place)
        rows = items[done : done + size]
        is_last_part = done + len(rows) >= len(items)
        if is_last_part and following is not None:
            self._check_progress(place, following)
            after = {"page": following, "done": 0}
        else:
            after = {"page": place, "done": done + len(rows)}
        is_end = is_last_part and following is None
        if is_end and not rows:
            return None
        keys = [[place, done + number] for number in range(len(rows))]
        first, last = (keys[0], keys[-1]) if keys else ((), ())
        return Page(rows, after, first_key=first, last_key=last, row_keys=lambda: keys, is_last=is_end)

    async def _load(self, place: Any) -> tuple[Sequence[T], Any]:
        if self._current is None or self._current[0] != place:
            answer: Any = self._fetch(self._cursors.load(place, self._run_id))
            if not inspect.isawaitable(answer):
                raise UnsupportedStatement(
                    f"pages: {self.fingerprint} has returned a {type(answer).__name__} that cannot be awaited: pass an "
                    f"`async def` that returns a list of items and the cursor of the next page; for one that yields "
                    f"items, take AsyncItems"
                )
            items, following = self._check_answer(await answer)
            self._current = place, items, None if following is None else self._cursors.dump(following)
        return self._current[1], self._current[2]

    def _check_answer(self, answer: Any) -> tuple[Sequence[T], C | None]:
        """Return the items and the next cursor.

        Raises:
            UnsupportedStatement: The function has returned something else.
        """
        if isinstance(answer, tuple) and len(answer) == 2:
            items = answer[0]
            if isinstance(items, Sequence) and not isinstance(items, str | bytes | bytearray | memoryview):
                return answer
        shown = f"{type(answer).__name__} of {len(answer)}" if isinstance(answer, tuple) else type(answer).__name__
        if isinstance(answer, tuple) and len(answer) == 2:
            shown = f"{type(answer[0]).__name__} as its items"
        raise UnsupportedStatement(
            f"pages: {self.fingerprint} has returned a {shown}: return a list of items, and the cursor of the next "
            f"page, or None behind the last one"
        )

    def _check_progress(self, place: Any, following: Any) -> None:
        """Raise an error if the function goes in a circle (Brent's algorithm: it finds a circle of any length)."""
        if not self._known and place is not None:
            self._known.add(_digest(place))
        if following in (place, self._seen) or _digest(following) in self._known:
            raise UnsupportedStatement(
                f"pages: {self.fingerprint} has returned the cursor {following!r} again after the page of {place!r}: "
                f"the walk would never end. Return the cursor of the next page, or None behind the last one"
            )
        if len(self._known) < _KNOWN_CURSORS:
            self._known.add(_digest(following))
        self._pages += 1
        if self._pages == self._replace_after:
            self._seen, self._pages, self._replace_after = following, 0, self._replace_after * 2

    async def _fetch_retried(self, number: int) -> Page[T] | None:
        """Return one item of those that were quarantined. The cursor is their number."""
        assert self._only is not None  # noqa: S101
        if number >= len(self._only):
            return None
        place, index = self._only[number]
        items, _ = await self._load(place)
        if index >= len(items):
            raise CursorMismatch(f"pages: the page of {place!r} has no item {index} any more")
        key = self._only[number]
        return Page([items[index]], number + 1, first_key=key, last_key=key, row_keys=lambda: [key])

    async def close(self) -> None:
        """Forget the page."""
        self._current = None


class AsyncItems(Generic[T, C]):
    """The items of an async iterator that can begin after a cursor: `ctx.walk(AsyncItems(read_events, int))`.

    Args:
        factory: Takes a cursor (None for the beginning), and returns an async iterator over pairs of an item and its
            cursor: the factory with this cursor returns an iterator that begins behind the item.
        cursor_type: The type of the cursor, which pydantic converts to JSON and back.
        name: A name that distinguishes this walk from others. Default: the function's name.

    Raises:
        UnsupportedStatement: A cursor is of another type or None, or the iterator yields no pairs.
        CursorMismatch: The cursor in the ledger is of another type.
    """

    kind = "items"

    def __init__(
        self,
        factory: Callable[[C | None], AsyncIterator[tuple[T, C]]],
        cursor_type: type[C],
        *,
        name: str | None = None,
    ) -> None:
        self._factory = factory
        self._cursors = _Cursors(self.kind, cursor_type)
        self.fingerprint = name or _name(factory)
        self._items: AsyncIterator[tuple[T, C]] | None = None
        self._only: list[list[Any]] | None = None
        self._run_id = ""

    async def open(self, step: OpenStep) -> Bounds:
        """Make the iterator at the cursor of the step."""
        self._only, self._run_id = step.only_keys, step.run_id
        if self._only is not None:
            return Bounds(total=len(self._only))
        self._items = self._make_items(step.cursor)
        return Bounds()

    async def fetch(self, transaction: BatchTransaction, cursor: Any, size: int) -> Page[T] | None:
        """Return the next items."""
        if self._only is not None:
            return await self._fetch_retried(cursor or 0)
        assert self._items is not None  # noqa: S101
        rows: list[T] = []
        keys: list[Any] = []  # of an item: the cursor behind which it is the first
        async for pair in self._items:
            item, behind = self._check_pair(pair)
            rows.append(item)
            keys.append([cursor])
            cursor = self._cursors.dump_of_item(self.fingerprint, behind)
            if len(rows) >= size:
                break
        if not rows:
            return None
        return Page(rows, cursor, first_key=keys[0], last_key=keys[-1], row_keys=lambda: keys)

    def _make_items(self, cursor: Any) -> AsyncIterator[tuple[T, C]]:
        """Return one iterator, also where the factory returns an object that makes a new one for each loop.

        Raises:
            UnsupportedStatement: The factory has returned something else.
        """
        made: Any = self._factory(self._cursors.load(cursor, self._run_id))
        if isinstance(made, AsyncIterable):
            return aiter(made)
        if inspect.iscoroutine(made):
            made.close()
        raise UnsupportedStatement(
            f"items: {self.fingerprint} has returned a {type(made).__name__} instead of an async iterator: pass an "
            f"`async def` that yields pairs of an item and the cursor behind it"
        )

    def _check_pair(self, pair: Any) -> tuple[T, C]:
        if isinstance(pair, tuple) and len(pair) == 2:
            return pair
        raise UnsupportedStatement(
            f"items: {self.fingerprint} has yielded a {type(pair).__name__} instead of a pair: yield pairs of an item "
            f"and the cursor behind it"
        )

    async def _fetch_retried(self, number: int) -> Page[T] | None:
        """Return one item of those that were quarantined. The cursor is their number."""
        assert self._only is not None  # noqa: S101
        if number >= len(self._only):
            return None
        key = self._only[number]
        await self._close_items()
        self._items = self._make_items(key[0])
        async for pair in self._items:
            item, _ = self._check_pair(pair)
            return Page([item], number + 1, first_key=key, last_key=key, row_keys=lambda: [key])
        raise CursorMismatch(f"items: {self.fingerprint} has no item behind {key[0]!r} any more")

    async def _close_items(self) -> None:
        items, self._items = self._items, None
        if items is not None and hasattr(items, "aclose"):
            await items.aclose()

    async def close(self) -> None:
        """Close the iterator."""
        await self._close_items()


def _digest(cursor: Any) -> bytes:
    return hashlib.blake2b(json.dumps(cursor, sort_keys=True).encode(), digest_size=16).digest()


def _name(function: Any) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}"
