"""The jobs of the tests of the page."""

from __future__ import annotations

from datetime import date
from typing import Literal

from sqlalchemy import select

from tests.models import Author
from worker import JobContext, NonRetryableError, job

HOSTILE = "<script>alert(1)</script> \x1b[31mred \u202egnp.exe \u200b'\"><img src=x onerror=alert(2)>"


@job
async def slow_walk(ctx: JobContext, size: int = 10) -> int:
    """Walk the authors at a pace that an operator sets."""
    async for batch in ctx.chunks(select(Author), size=size):
        for author in batch:
            author.seen += 1
    return ctx.rows_done


@job
async def picky_walk(ctx: JobContext) -> int:
    """Walk the authors, and quarantine those with a bad nickname."""
    async for batch in ctx.chunks(select(Author), size=50, on_error="quarantine", quarantine_limit=0.5):
        for author in batch:
            if (author.nickname or "").startswith("bad"):
                raise ValueError(f"author {author.id} has a bad nickname: {HOSTILE}")
            author.seen += 1
    return ctx.rows_done


@job(max_attempts=2, backoff=0.05)
async def strict_walk(ctx: JobContext) -> int:
    """Walk the authors, and fail at the first one with a bad nickname."""
    async for batch in ctx.chunks(select(Author), size=50):
        for author in batch:
            if (author.nickname or "").startswith("bad"):
                raise ValueError("this nickname is not allowed")
            author.seen += 1
    return ctx.rows_done


@job
async def brittle(ctx: JobContext, text: str = "") -> None:
    """Fail for good."""
    raise NonRetryableError(text or HOSTILE)


@job(cron="0 3 * * *", timezone="Europe/London", concurrency=2)
async def nightly(
    ctx: JobContext, depth: Literal["shallow", "deep"] = "shallow", day: date | None = None, rows: int = 10
) -> str:
    """Rebuild the index at night.

    It takes an hour or so; `deep` takes three.
    """
    return f"{depth} {day} {rows}"


@job
async def chosen_walk(ctx: JobContext, ids: list[int], size: int = 10) -> int:
    """Walk some authors."""
    async for batch in ctx.chunks(select(Author).where(Author.id.in_(ids)), size=size):
        for author in batch:
            author.seen += 1
    return ctx.rows_done
