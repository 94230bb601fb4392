"""A job that waits for the test, and readers of a worker's log and events."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest
from redis.asyncio import Redis

from tests.support.waiting import until
from worker import Client, JobContext, Run, job

#: How often each run was begun, and cancelled, in this process.
begun: Counter[str] = Counter()
cancelled: Counter[str] = Counter()
_gates: dict[str, asyncio.Event] = {}


@job(max_attempts=3)
async def gated(ctx: JobContext, name: str) -> str:
    """Wait until the test opens the gate."""
    begun[name] += 1
    try:
        await _gates.setdefault(name, asyncio.Event()).wait()
    except asyncio.CancelledError:
        cancelled[name] += 1
        raise
    return name


def forget() -> None:
    """Begin a test."""
    begun.clear()
    cancelled.clear()
    _gates.clear()


def stop_renewing(name: str) -> None:
    """Let a run end."""
    _gates.setdefault(name, asyncio.Event()).set()


async def start(client: Client, name: str) -> Run[str]:
    """Enqueue a run and wait until it has begun."""
    run = await client.enqueue(gated.options(id=name), name=name)

    async def has_begun() -> bool:
        return begun[name] > 0

    await until(has_begun)
    return run


async def run_one(client: Client, name: str) -> None:
    """Enqueue a run and wait for its end."""
    stop_renewing(name)
    run = await client.enqueue(gated.options(id=name), name=name)
    assert await run.result(timeout=120) == name


async def ends_told(redis: Redis, run_id: str) -> list[str]:
    """Return the end events of a run, once there is one."""
    ends = {"succeeded", "dead", "cancelled"}

    async def look() -> list[str]:
        events = await redis.xrange("worker:events")
        mine = [event[b"event"].decode() for _, event in events if event.get(b"run") == run_id.encode()]
        return [event for event in mine if event in ends]

    return await until(look)


def complaints(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the log lines about Redis for operators."""
    return [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR", "CRITICAL")]


async def over(caplog: pytest.LogCaptureFixture, times: int = 1) -> None:
    """Wait until the log has reported a number of recoveries."""

    async def look() -> bool:
        return len([message for message in caplog.messages if "Redis answers again" in message]) == times

    await until(look)


async def told(caplog: pytest.LogCaptureFixture, words: Sequence[str]) -> None:
    """Wait until the log has one line with all of these words."""

    async def look() -> bool:
        return any(all(word in message for word in words) for message in caplog.messages)

    await until(look)
