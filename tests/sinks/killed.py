"""Exports authors by one sink in a process of its own: `python -m tests.sinks.killed KIND DIRECTORY`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from sqlalchemy import select

from tests.models import Author
from worker import JobContext, job, load_settings
from worker.db.engine import Database
from worker.sinks import CsvParts, JsonLinesParts, ParquetParts
from worker.testing.runner import JobRunner

SINKS: dict[str, Any] = {"csv": CsvParts, "json": JsonLinesParts, "parquet": ParquetParts}


@job
async def export(ctx: JobContext, kind: str, directory: str) -> int:
    """Write id and name of each author."""
    authors = select(Author.id, Author.name).order_by(Author.id)
    async with SINKS[kind](ctx, directory) as parts:
        async for batch in ctx.stream(authors, size=10):
            await parts.write(batch)
            print(batch.number, flush=True)
    return ctx.rows_done


async def main(kind: str, directory: str) -> None:
    """Run one attempt, and print its result."""
    settings = load_settings()
    database = Database(settings)
    print(f"done {await JobRunner(database, settings).attempt(export, 'run', kind, directory)}")
    await database.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
