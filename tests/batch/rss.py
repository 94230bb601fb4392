"""`python -m tests.batch.rss KIND ROWS`: walk so many rows in a process of its own, and print its peak memory in KB."""

from __future__ import annotations

import asyncio
import resource
import sys

from sqlalchemy import select

from tests.models import Target
from worker import Database, JobContext, load_settings
from worker.testing import JobRunner


async def walk_chunks(ctx: JobContext, rows: int) -> None:
    """Read objects, and change some of them."""
    async for batch in ctx.chunks(select(Target).where(Target.id <= rows), size=1_000, lock=False):
        batch[0].touched = True


async def walk_stream(ctx: JobContext, rows: int) -> None:
    """Read rows, and write some."""
    statement = select(Target.id, Target.touched).where(Target.id <= rows).order_by(Target.id)
    async for partition in ctx.stream(statement, size=1_000):
        await partition.bulk.update(Target, [{"id": partition[0][0], "touched": True}])


async def main(kind: str, rows: int) -> None:
    """Walk, and tell."""
    settings = load_settings()
    database = Database(settings, "rss")
    ctx = JobRunner(database, settings).context("rss")
    await {"chunks": walk_chunks, "stream": walk_stream}[kind](ctx, rows)
    await ctx.succeed()
    assert ctx.rows_done == rows
    await ctx.close()
    await database.close()
    sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
