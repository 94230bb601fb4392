"""Runs the walk of one source in a process of its own: `python -m tests.sources.killed CASE ARGUMENTS`.

It prints a line for each batch, before the batch is committed, so that a test can kill it there or later.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

from sqlalchemy import select

from tests.models import Author
from tests.sources.rows import UserRow
from worker import JobContext, job, load_settings
from worker.db.engine import Database
from worker.sources import (
    AsyncItems,
    CsvFile,
    JsonLines,
    Pages,
    ParquetFile,
    Query,
    RedisStream,
    StreamEntry,
    TextLines,
)
from worker.testing.runner import JobRunner

LAST = 300


async def fetch_page(cursor: int | None) -> tuple[list[int], int | None]:
    """Return a page of twelve numbers, each behind the cursor."""
    begin = cursor or 0
    numbers = list(range(begin + 1, min(begin + 12, LAST) + 1))
    return numbers, numbers[-1] if numbers[-1] < LAST else None


async def count(cursor: int | None) -> AsyncIterator[tuple[int, int]]:
    """Yield the numbers behind a cursor."""
    for number in range((cursor or 0) + 1, LAST + 1):
        yield number, number


#: Makes a source from the arguments; its rows are a number, or have the number as `id`.
CASES: dict[str, Callable[..., Any]] = {
    "csv": lambda path: CsvFile(path, UserRow),
    "json": lambda path: JsonLines(path, UserRow),
    "lines": TextLines,
    "parquet": lambda path: ParquetFile(path, UserRow),
    "pages": lambda: Pages(fetch_page, int),
    "items": lambda: AsyncItems(count, int),
    "query": lambda: Query(select(Author.id).order_by(Author.id), database="legacy"),
    "redis": lambda key: RedisStream(key, "import"),
}


def number(row: Any) -> int:
    """Return the number of a row."""
    if isinstance(row, StreamEntry):
        return int(row.fields["number"])
    return int(row) if isinstance(row, str | int) else int(row["id"] if isinstance(row, dict) else row.id)


@job
async def write_rows(ctx: JobContext, case: str, arguments: list[str]) -> int:
    """Insert an author for each row; an author that is inserted twice is an error."""
    async for batch in ctx.walk(CASES[case](*arguments), size=5, name="rows"):
        rows = [{"id": number(row), "name": "", "region": 0, "code": str(number(row)), "seen": 0} for row in batch]
        await batch.bulk.insert(Author, rows)
        print(batch.number, flush=True)
    return ctx.rows_done


async def main(case: str, *arguments: str) -> None:
    """Run one attempt, and print its result."""
    settings = load_settings()
    database = Database(settings)
    print(f"done {await JobRunner(database, settings).attempt(write_rows, 'run', case, list(arguments))}")
    await database.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
