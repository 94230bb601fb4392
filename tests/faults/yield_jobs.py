"""Walks that yield all the time, and runs that wait behind them."""

from __future__ import annotations

import asyncio

from sqlalchemy import select

from tests.faults.jobs import BODY_SECONDS
from tests.models import Target
from worker import JobContext, job

#: The key in Redis that ends the slow batches of all walks.
HURRY = "hurry"


async def touch(ctx: JobContext, parallel: int = 1) -> int:
    """Set `touched` on each row, in slow batches until the test has seen a yield, and return the attempt."""
    async for batch in ctx.chunks(select(Target.id), size=10, parallel=parallel):
        await batch.bulk.update(Target, [{"id": key, "touched": True} for key in batch])
        await asyncio.sleep(BODY_SECONDS if await ctx.redis.exists(HURRY) else 0.1)
    return ctx.attempt


@job(yield_after=0.05, fair_by="tenant", unique=True)
async def fair_walk(ctx: JobContext, tenant: str) -> int:
    """Yield, with a turn of its tenant and a unique mark."""
    return await touch(ctx)


@job(yield_after=0.05, concurrency=1)
async def single_walk(ctx: JobContext, number: int) -> int:
    """Yield the place under a limit as well."""
    return await touch(ctx)


@job(yield_after=0.05, priority=3)
async def high_walk(ctx: JobContext, number: int) -> int:
    """Yield to as high ones."""
    return await touch(ctx)


@job(yield_after=0.05)
async def shared_walk(ctx: JobContext, number: int) -> int:
    """Yield with several hands."""
    return await touch(ctx, parallel=3)


def add(number: int) -> int:
    """Return a number, as a step."""
    return number


@job(yield_after=0.05)
async def sleeper(ctx: JobContext, number: int) -> int:
    """Sleep between steps that count their calls."""
    for place in range(4):
        await ctx.step(f"add {place}", add, place)
        await ctx.redis.rpush(f"steps:{ctx.run_id}", place)
        await ctx.sleep(0.2 if place % 2 else 0.3)
    return ctx.attempt


@job(fair_by="tenant")
async def quick(ctx: JobContext, tenant: str) -> int:
    """Use a slot for a moment."""
    await asyncio.sleep(0.05)
    return ctx.attempt
