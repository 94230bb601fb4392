"""arq functions that the tests of the facade run, and what they record."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from arq.connections import ArqRedis
from arq.jobs import Job as ArqJob
from arq.worker import Retry

from worker.arq_compat import Worker

seen: list[Any] = []
gate: dict[str, asyncio.Event] = {}


async def add(ctx: dict[Any, Any], a: int, b: int = 2) -> int:
    """Return a sum."""
    seen.append(ctx["job_id"])
    return a + b


async def look(ctx: dict[Any, Any]) -> dict[str, Any]:
    """Return the values of the context."""
    assert isinstance(ctx["redis"], ArqRedis)
    return {name: value for name, value in ctx.items() if name != "redis"}


async def fail(ctx: dict[Any, Any]) -> None:
    """Fail."""
    seen.append(ctx["job_try"])
    raise ValueError("not today")


async def again(ctx: dict[Any, Any], times: int, defer: float | None = None) -> int:
    """Request a number of further attempts."""
    seen.append(time.time())
    if ctx["job_try"] <= times:
        raise Retry(defer=defer)
    return int(ctx["job_try"])


async def hang(ctx: dict[Any, Any]) -> str:
    """Wait for a gate that may never open."""
    seen.append(ctx["job_try"])
    await gate["go"].wait()
    return "went"


async def deaf(ctx: dict[Any, Any]) -> None:
    """Swallow the interruption."""
    while not gate["go"].is_set():
        with suppress(asyncio.CancelledError):
            await gate["go"].wait()
    seen.append("ended")


async def leave(ctx: dict[Any, Any]) -> None:
    """Exit."""
    raise SystemExit(3)


MakeWorker = Callable[..., Worker]


async def put(arq: ArqRedis, name: str, *args: Any, **options: Any) -> ArqJob:
    """Enqueue with the stock client."""
    sent = await arq.enqueue_job(name, *args, **options)
    assert sent is not None
    return sent
