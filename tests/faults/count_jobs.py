"""Plain jobs of all settings. Each counts its attempts through a connection of its own."""

from __future__ import annotations

import asyncio
import os
import random
import time
from functools import cache

from redis import Redis as BlockingRedis
from redis.asyncio import Redis

from worker import JobContext, Retry, job

COUNTED = "test:counted"


@cache
def counter() -> Redis:
    """Return the connection of this process."""
    return Redis.from_url(os.environ["REDIS_URL"])


@cache
def blocking_counter() -> BlockingRedis:
    """Return the connection of this process's threads."""
    return BlockingRedis.from_url(os.environ["REDIS_URL"])


async def count(ctx: JobContext, n: int) -> int:
    """Count this attempt. Wait, and compute, for some milliseconds."""
    await counter().hincrby(COUNTED, f"{ctx.job}:{n}:{ctx.attempt}", 1)
    await asyncio.sleep(random.random() * 0.01)
    end = time.perf_counter() + 0.0005
    while time.perf_counter() < end:
        pass
    return n


@job(result_ttl=0)
async def unkept(ctx: JobContext, n: int) -> int:
    return await count(ctx, n)


@job
async def kept(ctx: JobContext, n: int) -> int:
    return await count(ctx, n)


@job(result_ttl=0)
async def retried(ctx: JobContext, n: int) -> int:
    await count(ctx, n)
    if ctx.attempt == 1:
        raise Retry(after=0.01)
    return n


@job(unique=True, result_ttl=0)
async def alone(ctx: JobContext, n: int) -> int:
    return await count(ctx, n)


@job(concurrency=15, result_ttl=0)
async def limited(ctx: JobContext, n: int) -> int:
    return await count(ctx, n)


@job(rate="3000/second burst 100")
async def rated(ctx: JobContext, n: int) -> int:
    return await count(ctx, n)


@job(result_ttl=0)
async def delayed(ctx: JobContext, n: int) -> int:
    return await count(ctx, n)


@job(priority=5)
async def urgent(ctx: JobContext, n: int) -> int:
    return await count(ctx, n)


@job(result_ttl=0)
async def first(ctx: JobContext, n: int) -> int:
    return await count(ctx, n)


@job(result_ttl=0)
async def following(ctx: JobContext, n: int) -> int:
    return await count(ctx, n)


@job(result_ttl=0)
async def member(ctx: JobContext, n: int) -> int:
    return await count(ctx, n)


@job(result_ttl=0)
async def after_group(ctx: JobContext, n: int) -> int:
    return await count(ctx, n)


@job
async def with_headers(ctx: JobContext, n: int) -> int:
    if ctx.headers.get("traceparent") != f"00-{n + 1:032x}-{n + 1:016x}-01":
        raise ValueError(f"the headers of run {n} are those of another run")
    return await count(ctx, n)


@job(result_ttl=0)
def in_a_thread(ctx: JobContext, n: int) -> int:
    blocking_counter().hincrby(COUNTED, f"{ctx.job}:{n}:{ctx.attempt}", 1)
    return n
