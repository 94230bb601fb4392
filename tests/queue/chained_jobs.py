"""Jobs for chains and groups, and what they record."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import select

from tests.models import Author
from tests.support.claims import claim_jobs
from worker import (
    JobContext,
    NonRetryableError,
    job,
)
from worker.queue.chain import make_follow_up
from worker.queue.claims import Ack, Claim
from worker.queue.payload import decode_payload
from worker.queue.store import QueueStore

QUEUE = "arq:queue"


calls: list[Any] = []


fail: dict[str, bool] = {}


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Clear the records of the previous test."""
    calls.clear()
    fail["now"] = False


@job
async def double(ctx: JobContext, number: int) -> int:
    """Double a number."""
    calls.append(("double", number))
    if fail["now"]:
        raise NonRetryableError("not today")
    return 2 * number


@job
async def add(ctx: JobContext, number: int, more: int = 1) -> int:
    """Add to a number."""
    calls.append(("add", number, more))
    return number + more


@job
async def total(ctx: JobContext, numbers: list[int | None], name: str = "") -> str:
    """Sum up."""
    calls.append(("total", numbers))
    return f"{name}{sum(number or 0 for number in numbers)}"


@job
async def done(ctx: JobContext) -> str:
    """Record the call."""
    calls.append(("done",))
    return "done"


@job
async def walk(ctx: JobContext) -> int:
    """Walk a table."""
    rows = 0
    async for batch in ctx.chunks(select(Author), size=10):
        rows += len(batch)
    calls.append(("walk", rows))
    return rows


ALL = (double, add, total, done, walk)


async def called(what: Any) -> bool:
    return what in calls


async def ending(redis: Redis, run_id: str) -> tuple[QueueStore, Claim, Ack]:
    """Claim a run, and return its successful end."""
    store = QueueStore(redis, "north")
    [claim] = [claim for claim in await claim_jobs(store, QUEUE, 10) if claim.run_id == run_id]
    assert claim.payload is not None
    payload = decode_payload(claim.payload, accept_pickle=False)
    next_ = make_follow_up(payload, run_id=run_id, queue=QUEUE, success=True, result="2")
    return store, claim, Ack(claim, b"{}", 0, next_)
