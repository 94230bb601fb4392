"""`python -m benchmarks.rss KIND ROWS`: walks a number of rows in its own process, and prints its peak memory in KB."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from sqlalchemy import select, update

from benchmarks.ours import COLUMNS
from benchmarks.tables import Reader
from worker import JobContext, load_settings
from worker.testing.runner import JobRunner
from worker.types import Database


async def walk_chunks(ctx: JobContext, rows: int) -> None:
    """Read objects."""
    async for batch in ctx.chunks(select(Reader).where(Reader.id <= rows), size=1_000, lock=False):
        batch[0].score = 1


async def walk_stream(ctx: JobContext, rows: int) -> None:
    """Read rows."""
    async for _ in ctx.stream(COLUMNS.where(Reader.id <= rows).order_by(Reader.id), size=1_000):
        pass


async def walk_sweep(ctx: JobContext, rows: int) -> None:
    """Sweep with a condition that matches no row."""
    await ctx.sweep(update(Reader).where(Reader.id <= rows, Reader.score < 0).values(score=0), size=1_000)


WALKS = {"chunks": walk_chunks, "stream": walk_stream, "sweep": walk_sweep}


def peak_kb() -> int:
    """Return this process' peak memory from VmHWM, because ru_maxrss starts with the peak of the parent process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


async def main(kind: str, rows: int) -> None:
    """Walk, and tell."""
    settings = load_settings(overrides={"database": {"statement_timeout_seconds": 0}})
    database = Database(settings, "rss")
    ctx = JobRunner(database, settings).context("rss")
    await WALKS[kind](ctx, rows)
    await ctx._attempt.succeed()
    await ctx._attempt.close()
    await database.close()
    sys.stdout.write(str(peak_kb()))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
