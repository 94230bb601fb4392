"""The jobs of the tests of the API."""

from __future__ import annotations

from datetime import date
from typing import Literal

from sqlalchemy import select

from tests.models import Author
from worker import JobContext, NonRetryableError, job


@job(priority=3, concurrency=4, concurrency_key="name")
async def greet(ctx: JobContext, name: str, times: int = 1, day: date | None = None) -> str:
    """Say hello."""
    return f"hello {name}" * times


@job(cron="0 3 * * *", concurrency=2)
async def nightly(ctx: JobContext, depth: Literal["shallow", "deep"] = "shallow") -> None:
    """Run at night."""


@job
async def brittle(ctx: JobContext) -> None:
    """Fail for good."""
    raise NonRetryableError("<script>alert(1)</script> \x1b[31m")


@job
async def walk(ctx: JobContext) -> int:
    """Walk the authors, and quarantine one of them."""
    async for batch in ctx.chunks(select(Author), size=10, on_error="quarantine", quarantine_limit=0.5):
        for author in batch:
            if author.seen == 13:
                raise ValueError("unlucky")
            author.seen += 100
    return ctx.rows_done


@job
async def slow_walk(ctx: JobContext) -> int:
    """Walk the authors at a pace that an operator sets."""
    async for batch in ctx.chunks(select(Author), size=1):
        for author in batch:
            author.seen += 1
    return ctx.rows_done


JOBS = (greet, nightly, brittle, walk, slow_walk)
