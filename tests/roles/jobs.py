"""Jobs of each kind, which together use each part of the ledger and of the queue."""

from __future__ import annotations

import asyncio

from sqlalchemy import select, text, update

from tests.models import Author
from worker import JobContext, NonRetryableError, job

#: Lets jobs end, and failing jobs succeed.
GATE = asyncio.Event()


@job
async def plain(ctx: JobContext, value: int = 1) -> int:
    """Return a value."""
    return value


@job
async def walk(ctx: JobContext) -> int:
    """Count each author once."""
    async for batch in ctx.chunks(select(Author), size=10):
        for author in batch:
            author.seen += 1
    return ctx.rows_done


@job
async def sweep(ctx: JobContext) -> int:
    """Change rows in the server."""
    return await ctx.sweep(update(Author).values(nickname=None), size=10)


@job
async def stream(ctx: JobContext) -> int:
    """Read a snapshot."""
    async for _ in ctx.stream(select(Author.id).order_by(Author.id), size=10):
        pass
    return ctx.rows_done


@job
async def walk_together(ctx: JobContext) -> int:
    """Walk with two hands."""
    async for batch in ctx.chunks(select(Author), size=5, parallel=2):
        for author in batch:
            author.seen += 1
        await asyncio.sleep(0.005)
    return ctx.rows_done


@job
async def quarantine(ctx: JobContext) -> int:
    """Fail for one row, which goes to the quarantine."""
    async for batch in ctx.chunks(select(Author), size=10, on_error="quarantine", quarantine_limit=10):
        for author in batch:
            if author.id == 7 and not GATE.is_set():
                raise NonRetryableError("no seven")
    return ctx.rows_done


@job
async def skip_locked(ctx: JobContext) -> int:
    """Walk past locked rows."""
    async for _ in ctx.chunks(select(Author), size=10, skip_locked=True):
        pass
    return ctx.rows_done


@job
async def steps(ctx: JobContext) -> int:
    """Record a step, and sleep."""

    async def answer() -> int:
        return 42

    found = await ctx.step("answer", answer)
    await ctx.sleep(0.05)
    return found


@job
async def enqueues(ctx: JobContext) -> None:
    """Enqueue in its own transaction."""
    async with ctx.transaction() as session:
        await session.execute(text("SELECT worker.enqueue('plain', id => 'from-a-job')"))


@job(concurrency=1, concurrency_key="value", rate="100/second")
async def limited(ctx: JobContext, value: int = 1) -> None:
    """Pass the limits."""


@job(unique=True)
async def unique(ctx: JobContext) -> None:
    """Be alone."""


@job(fair_by="tenant", fair_weights={"north": 2})
async def fair(ctx: JobContext, tenant: str) -> None:
    """Take turns."""


@job(cron="* * * * *")
async def each_minute(ctx: JobContext) -> None:
    """Be enqueued by cron."""


@job
async def fails(ctx: JobContext) -> None:
    """Become a dead letter, until the gate is open."""
    if not GATE.is_set():
        raise NonRetryableError("no")


@job(max_attempts=3)
async def retries(ctx: JobContext) -> None:
    """Fail once."""
    if ctx.attempt == 1:
        raise ConnectionError("once")


@job
async def waits(ctx: JobContext) -> None:
    """Wait for the gate."""
    await GATE.wait()


@job
async def pauses(ctx: JobContext) -> int:
    """Walk, and wait for the gate in the second batch."""
    async for batch in ctx.chunks(select(Author.id), size=10, lock=False):
        if min(batch) > 10:
            await GATE.wait()
    return ctx.rows_done


JOBS = (
    *(plain, walk, sweep, stream, walk_together, quarantine, skip_locked, steps, enqueues, limited, unique, fair),
    *(each_minute, fails, retries, waits, pauses),
)
