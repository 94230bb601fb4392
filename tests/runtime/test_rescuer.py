"""The rescuer: an orphan that cannot be enqueued does not block the others."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis
from sqlalchemy import select, text

from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.waiting import until
from tests.support.workers import with_worker, working
from worker import Client, JobContext, Retry, Settings, job
from worker.db.engine import Database
from worker.ledger import Ledger
from worker.queue import keys

stop = {"now": True}


@job
async def walk(ctx: JobContext) -> int:
    """Walk a table, and stop once on the way."""
    async for batch in ctx.chunks(select(Author), size=10, lock=False):
        if batch.number == 2 and stop["now"]:
            raise Retry(after=3600)
    return ctx.rows_done


@pytest.mark.parametrize("kind", ["payload", "queue"])
async def test_one_orphan_that_cannot_be_put_back_keeps_no_other_from_it(
    redis: Redis, client: Client, database: Database, fast: Settings, kind: str
) -> None:
    await fill_authors(database, 30)
    stop["now"] = True
    ledger = Ledger(database, "test")
    settings = with_worker(fast, rescue_interval_seconds=0.2, lease_seconds=1.0)
    async with working(settings, walk):
        for run_id in ("bad", "good"):
            await client.enqueue(walk.options(id=run_id))
            await until(lambda run_id=run_id: _state_is(ledger, run_id, "waiting"))
            await redis.delete(keys.JOB + run_id, keys.RETRY + run_id)
            await redis.zrem("arq:queue", run_id)
        stop["now"] = False
        change = "payload = '{no json'" if kind == "payload" else "queue = 'aaa:queue'"
        await redis.set("aaa:queue", "no queue")
        async with database.transaction() as session:
            await session.execute(text(f"UPDATE worker.run SET {change} WHERE id = 'bad'"))
        await until(lambda: _state_is(ledger, "good", "succeeded"))
        if kind == "payload":
            await until(lambda: _state_is(ledger, "bad", "dead"))
            known = await ledger.find("bad")
            assert known is not None
            assert "the payload is not JSON" in (known.error or "")
        else:
            await redis.delete("aaa:queue")
            await until(lambda: redis.zscore("aaa:queue", "bad"))


async def _state_is(ledger: Ledger, run_id: str, state: str) -> bool:
    known = await ledger.find(run_id)
    return known is not None and known.state == state
