"""`python -m tests.batch.rss KIND ROWS`: walks some rows in its own process, and prints its peak memory in KB."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from sqlalchemy import select

from tests.models import Target
from worker import JobContext, load_settings
from worker.testing.runner import JobRunner
from worker.types import Database


async def walk_chunks(ctx: JobContext, rows: int) -> None:
    """Read objects, and change some of them."""
    async for batch in ctx.chunks(select(Target).where(Target.id <= rows), size=1_000, lock=False):
        batch[0].touched = True


async def walk_stream(ctx: JobContext, rows: int) -> None:
    """Read rows, and write some."""
    statement = select(Target.id, Target.touched).where(Target.id <= rows).order_by(Target.id)
    async for partition in ctx.stream(statement, size=1_000):
        await partition.bulk.update(Target, [{"id": partition[0][0], "touched": True}])


def peak_kb() -> int:
    """Return this process' peak memory from VmHWM, because ru_maxrss starts with the peak of the parent process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


async def main(kind: str, rows: int) -> None:
    """LeavableWalk, and tell."""
    settings = load_settings()
    database = Database(settings, "rss")
    ctx = JobRunner(database, settings).context("rss")
    await {"chunks": walk_chunks, "stream": walk_stream}[kind](ctx, rows)
    await ctx._attempt.succeed()
    assert ctx.rows_done == rows
    await ctx._attempt.close()
    await database.close()
    sys.stdout.write(str(peak_kb()))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
