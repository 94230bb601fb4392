"""Rows that call out: an async function for each row, some at a time, while no transaction is open."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Outcome(Generic[T, R]):
    """What came of one row.

    Attributes:
        row: the row.
        row_key: the same at each try of the run, for the other side to know a call by.
        result: what the function returned; None where it raised.
        error: what it raised; None where it returned.
    """

    row: T
    row_key: str
    result: R | None = None
    error: Exception | None = None


async def gather_rows(
    function: Callable[[T, str], Awaitable[R]],
    rows: Sequence[T],
    row_keys: Sequence[str],
    *,
    concurrency: int,
    errors: Literal["raise", "collect"],
) -> list[Outcome[T, R]]:
    """Call a function for each row, at most `concurrency` at a time; see `Batch.gather`."""
    found: list[Any] = [None] * len(rows)
    waiting: Iterator[tuple[int, tuple[T, str]]] = enumerate(zip(rows, row_keys, strict=True))

    async def work() -> None:
        for place, (row, key) in waiting:  # one iterator for all: each takes the next row when it is free
            try:
                found[place] = Outcome[T, R](row, key, result=await function(row, key))
            except Exception as error:
                if errors == "raise":
                    raise
                found[place] = Outcome[T, R](row, key, error=error)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(rows))):
                group.create_task(work())
    except BaseExceptionGroup as failed:
        # The first one stands for all: what the others raised on their way out says no more.
        raise failed.exceptions[0] from None
    return found
