"""Waits for an expected state by polling, never by a fixed sleep."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from redis.asyncio import Redis

from worker import Run
from worker.queue.payload import now_ms

T = TypeVar("T")


async def until(look: Callable[[], Awaitable[T]], seconds: float = 120.0) -> T:
    """Poll until `look` returns a true value; fail after a number of seconds.

    The longer it has waited, the longer is the pause between two looks: many tests wait at once, and each look costs
    the processes that they wait for.
    """
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(seconds):
        while True:
            seen = await look()
            if seen:
                return seen
            await asyncio.sleep(min(max(0.01, (loop.time() - began) / 10), 0.1))


async def until_true(look: Callable[[], object], seconds: float = 120.0) -> None:
    """Poll until a plain function returns a true value; fail after a number of seconds."""

    async def looked() -> bool:
        return bool(look())

    await until(looked, seconds)


async def until_status(run: Run[Any], status: str) -> None:
    """Wait until a run has that status."""

    async def has_status() -> bool:
        return await run.status() == status

    await until(has_status)


async def next_millisecond() -> None:
    """Wait until the clock shows another millisecond: runs that are due in the same one have no order."""
    before = now_ms()
    await until_true(lambda: now_ms() > before)


async def round_trips(redis: Redis, count: int = 200) -> None:
    """Talk to Redis so often: steps in which a worker of the same event loop can do what it should not do.

    They prove that something does not happen by steps, and not by a time in which a busy machine may do nothing.
    """
    for _ in range(count):
        await redis.ping()


async def script_calls(redis: Redis) -> int:
    """Return how many Lua scripts the server has run by their digest."""
    return int((await redis.info("commandstats")).get("cmdstat_evalsha", {}).get("calls", 0))
