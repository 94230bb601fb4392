"""Longhaul's side: jobs as users write them."""

from __future__ import annotations

import asyncio
from typing import Literal

from sqlalchemy import delete, insert, select, update

from benchmarks.tables import Bench, Copy, Reader
from worker import JobContext, job

Size = int | Literal["auto"]

COLUMNS = select(Reader.id, Reader.name, Reader.score)


@job
async def update_in_chunks(ctx: JobContext, size: int) -> int:
    """Read three columns, write one."""
    async for batch in ctx.chunks(COLUMNS, size=size):
        await batch.bulk.update(Reader, [{"id": key, "score": score + len(name)} for key, name, score in batch])
    return ctx.rows_done


@job
async def update_by_columns(ctx: JobContext, size: int) -> int:
    """The same, without a dict for each row."""
    async for batch in ctx.chunks(COLUMNS, size=size):
        scores = [score + len(name) for _, name, score in batch]
        await batch.bulk.update(Reader, {"id": [row.id for row in batch], "score": scores})
    return ctx.rows_done


@job
async def change_objects(ctx: JobContext, size: int) -> int:
    """Change one attribute of each object."""
    async for batch in ctx.chunks(select(Reader), size=size):
        for reader in batch:
            reader.score += 1
    return ctx.rows_done


@job
async def update_by_sweep(ctx: JobContext, size: int) -> int:
    """Change one column."""
    return await ctx.sweep(update(Reader).values(score=Reader.score + 1), size=size)


@job
async def delete_by_sweep(ctx: JobContext, size: int) -> int:
    """Delete all."""
    return await ctx.sweep(delete(Reader), size=size)


@job
async def copy_by_sweep(ctx: JobContext, size: int) -> int:
    """Copy three columns into another table."""
    return await ctx.sweep(insert(Copy).from_select(["id", "name", "score"], COLUMNS), size=size)


@job
async def read_by_stream(ctx: JobContext, size: int) -> int:
    """Read three columns."""
    seen = 0
    async for partition in ctx.stream(COLUMNS.order_by(Reader.id), size=size):
        for _, _, _ in partition:
            seen += 1
    return seen


@job
async def upsert_by_stream(ctx: JobContext, size: int) -> int:
    """Read three columns, upsert them elsewhere."""
    async for partition in ctx.stream(COLUMNS.order_by(Reader.id), size=size):
        rows = [{"id": key, "name": name, "score": score + 1} for key, name, score in partition]
        await partition.bulk.upsert(Copy, rows)
    return ctx.rows_done


@job
async def walk_on_in_chunks(ctx: JobContext, size: Size, turns: int) -> int:
    """Walk the table repeatedly, until the load that runs at the same time has been measured."""
    for turn in range(turns):
        async for batch in ctx.chunks(COLUMNS, size=size, name=f"turn {turn}"):
            await batch.bulk.update(Reader, [{"id": key, "score": score + len(name)} for key, name, score in batch])
    return ctx.rows_done


@job
async def walk_on_by_sweep(ctx: JobContext, size: Size, turns: int) -> int:
    """Change the same column inside the server."""
    for turn in range(turns):
        await ctx.sweep(update(Reader).values(score=Reader.score + 1), size=size, name=f"turn {turn}")
    return ctx.rows_done


async def bulk_insert(bench: Bench, size: int) -> int:
    """Insert rows that the job makes."""
    ctx = bench.run_job.context()
    done = 0
    for first in range(0, bench.rows, size):
        rows = [{"id": n, "name": f"name {n}", "score": n} for n in range(first, min(first + size, bench.rows))]
        done += await ctx.bulk.insert(Copy, rows)
    await ctx._attempt.close()
    return done


@job
async def update_together(ctx: JobContext, size: int, hands: int) -> int:
    """Read three columns, write one, by several hands."""
    async for batch in ctx.chunks(COLUMNS, size=size, parallel=hands):
        await batch.bulk.update(Reader, [{"id": key, "score": score + len(name)} for key, name, score in batch])
    return ctx.rows_done


@job
async def change_objects_together(ctx: JobContext, size: int, hands: int) -> int:
    """Change one attribute of each object, by several hands."""
    async for batch in ctx.chunks(select(Reader), size=size, parallel=hands):
        for reader in batch:
            reader.score += 1
    return ctx.rows_done


@job
async def sweep_together(ctx: JobContext, size: int, hands: int) -> int:
    """Change one column, by several hands."""
    return await ctx.sweep(update(Reader).values(score=Reader.score + 1), size=size, parallel=hands)


@job
async def call_together(ctx: JobContext, size: int, hands: int) -> int:
    """Wait 10 ms for another service for each batch, by several hands."""
    async for batch in ctx.chunks(select(Reader.id), size=size, lock=False, parallel=hands):
        await asyncio.sleep(0.01)
        assert batch
    return ctx.rows_done
