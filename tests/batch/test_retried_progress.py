"""The progress of a run that processes quarantined rows again: of their number, which is known."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.workers import working
from worker import Client, JobContext, Settings, job
from worker.db.engine import Database
from worker.ledger import Ledger


@job(max_attempts=2)
async def check_authors(ctx: JobContext) -> int:
    """Put every author aside whose key is a multiple of `bad`, a number in Redis."""
    bad = int(await ctx.redis.get("bad"))
    async for batch in ctx.chunks(select(Author), size=10, on_error="quarantine", quarantine_limit=0.4):
        for author in batch:
            if author.id % bad == 0:
                raise ValueError("it does not fit")
    return ctx.rows_done


@pytest.mark.parametrize(("bad", "rows"), [(3, 0), (99, 15), (45, 14)])
async def test_a_retry_of_quarantined_rows_is_of_their_number(
    client: Client, database: Database, fast: Settings, bad: int, rows: int
) -> None:
    """`bad` is that of the retry: 3 fails for each row again, 99 for none, 45 for the last. What fails may return."""
    await fill_authors(database, 45)
    await client.redis.set("bad", 3)
    async with working(fast, check_authors):
        run = await client.enqueue(check_authors)
        assert await run.result(timeout=120) == 30
        await client.redis.set("bad", bad)
        [again] = await client.retry_quarantined(run.id)
        assert await again.result(timeout=120) == rows
    ledger = Ledger(database)
    [record] = await ledger.list_runs(run_id=again.id)
    [step] = record.steps
    assert (record.state, record.rows, record.total, step.total) == ("succeeded", rows, 15, 15)
    assert len(await ledger.quarantine.list_rows()) == 15 - rows
    assert (await again.progress().__anext__()).fields["total"] == "15"
