"""Rows for a walk, and a walk that marks them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import select

from tests.models import Author, authors
from worker.attempt.context import JobContext


async def fill(ctx: JobContext, count: int) -> None:
    await ctx.bulk.insert(Author, authors(count))


async def mark(ctx: JobContext, *, stop_after: int | None = None, size: int = 10, **options: Any) -> None:
    """Walk all authors and count each; raise inside of the batch after `stop_after`."""
    async for batch in ctx.chunks(select(Author), size=size, **options):
        for author in batch:
            author.seen += 1
        if stop_after is not None and batch.number > stop_after:
            raise RuntimeError("the job dies in the middle of a batch")
    await ctx._attempt.succeed()
