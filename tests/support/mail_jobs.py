"""Jobs of the scenes that the tests of `worker top` and of docs/redis-cli.md set up."""

from __future__ import annotations

from sqlalchemy import select

from tests.models import Author
from worker import JobContext, NonRetryableError, job

#: Whether the cause of bob's failures is removed.
cured = {"yes": False}


@job
async def index_names(ctx: JobContext) -> int:
    """Walk the authors."""
    async for batch in ctx.chunks(select(Author), size=10):
        for author in batch:
            author.seen += 1
    return ctx.rows_done


@job
async def send_mail(ctx: JobContext, to: str) -> str:
    """Fail permanently for bob, until the cause is removed. The error has a control sequence of terminals."""
    if to == "bob" and not cured["yes"]:
        raise NonRetryableError("bob has moved\x1b[2J")
    return f"sent to {to}"
