"""Jobs for workers that are killed; a trigger writes an audit row for each effect of each row."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal

from sqlalchemy import select, update

from tests.models import Target
from worker import JobContext, job

#: Seconds that the body of a batch takes, so that kills find the walks under way.
BODY_SECONDS = 0.004


@job
async def touch_by_chunks(ctx: JobContext, size: int = 25) -> int:
    """Set `touched` on each row."""
    async for batch in ctx.chunks(select(Target), size=size):
        for target in batch:
            target.touched = True
        await asyncio.sleep(BODY_SECONDS)
    return ctx.rows_done


@job
async def touch_when_let_go(ctx: JobContext, size: int = 10) -> int:
    """Set `touched` on each row; in the sixth batch, wait until the test lets it go on, with nothing sent meanwhile."""
    async for batch in ctx.chunks(select(Target), size=size):
        for target in batch:
            target.touched = True
        if batch.number == 6:
            await ctx.redis.set("waits", 1)
            while not await ctx.redis.exists("let-go"):
                await asyncio.sleep(0.01)
    return ctx.rows_done


@job
async def touch_and_call(ctx: JobContext, size: int = 25) -> int:
    """Set `touched` on each row, after a call to another service for each batch; each attempt has another size."""
    async for batch in ctx.chunks(select(Target.id), size=random.randint(max(1, size // 2), size)):
        await ctx.redis.rpush(f"calls:{ctx.run_id}", json.dumps([batch.idempotency_key, list(batch)]))
        await batch.bulk.update(Target, [{"id": key, "touched": True} for key in batch])
        await asyncio.sleep(BODY_SECONDS)
    return ctx.rows_done


@job
async def touch_by_stream(ctx: JobContext, size: int = 25) -> int:
    """Set `touched` on each row of a result."""
    async for partition in ctx.stream(select(Target.id, Target.touched).order_by(Target.id), size=size):
        await partition.bulk.update(Target, [{"id": key, "touched": True} for key, _ in partition])
        await asyncio.sleep(BODY_SECONDS)
    return ctx.rows_done


@job
async def touch_by_sweep(ctx: JobContext, size: int = 10) -> int:
    """Set `touched` with one statement."""
    return await ctx.sweep(update(Target).values(touched=True), size=size)


@job
async def outlives_its_worker(ctx: JobContext, stubborn: bool = False) -> str:
    """Wait, in the first worker that has it, until the test lets it go; end at once in the next. No ledger."""
    me = (await ctx.redis.get(f"arq:in-progress:{ctx.run_id}")).decode()
    tries = await ctx.redis.rpush(f"begun:{ctx.run_id}", me)
    try:
        while tries == 1 and not await ctx.redis.exists(f"let-go:{ctx.run_id}"):
            await asyncio.sleep(0.01)
    except asyncio.CancelledError:
        await ctx.redis.rpush(f"cancelled:{ctx.run_id}", me)
        if not stubborn:
            raise
    return str(me)


@job
async def killed_by_its_data(ctx: JobContext, deadly: int) -> None:
    """Die at one row, as if out of memory."""
    async for batch in ctx.chunks(select(Target), size=10):
        for target in batch:
            if target.id == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            target.touched = True


@job
async def touch_by_hands(ctx: JobContext, size: int = 25) -> int:
    """Set `touched` on each row by several hands."""
    async for batch in ctx.chunks(select(Target), size=size, parallel=3):
        for target in batch:
            target.touched = True
        await asyncio.sleep(BODY_SECONDS)
    return ctx.rows_done


@job
async def sweep_by_hands(ctx: JobContext, size: int = 10) -> int:
    """Set `touched` with one statement by several hands."""
    return await ctx.sweep(update(Target).values(touched=True), size=size, parallel=3)


@job
async def stream_by_hands(ctx: JobContext, size: int = 25) -> int:
    """Set `touched` on each row of a result by several hands."""
    reads = select(Target.id, Target.touched).order_by(Target.id)
    async for partition in ctx.stream(reads, size=size, parallel=3):
        await partition.bulk.update(Target, [{"id": key, "touched": True} for key, _ in partition])
        await asyncio.sleep(BODY_SECONDS)
    return ctx.rows_done
