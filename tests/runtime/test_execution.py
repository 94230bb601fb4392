"""The identity of an execution in the ledger."""

from __future__ import annotations

import json

from redis.asyncio import Redis
from sqlalchemy import select, update

from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.waiting import until
from tests.support.workers import working
from worker import JobContext, Settings, job
from worker.db.engine import Database
from worker.queue import keys


@job
async def nightly(ctx: JobContext) -> int:
    """Count a visit of each row."""
    return await ctx.sweep(update(Author).values(seen=Author.seen + 1), size=10)


async def test_an_id_that_redis_cli_enqueues_again_is_a_new_run(
    redis: Redis, database: Database, fast: Settings
) -> None:
    """Such payloads have no time of enqueueing: that of the second night is the same, byte by byte."""
    await fill_authors(database, 30)
    async with working(fast, nightly):
        for night in (1, 2):
            await redis.delete(keys.RESULT + "nightly")  # it has expired
            await redis.set(keys.JOB + "nightly", json.dumps({"f": "nightly", "k": {}}))
            await redis.zadd("arq:queue", {"nightly": 0})
            await until(lambda: redis.exists(keys.RESULT + "nightly"))
            assert json.loads(await redis.get(keys.RESULT + "nightly"))["r"] == 30
            async with database.session() as session:
                assert (await session.scalars(select(Author.seen).distinct())).all() == [night]
