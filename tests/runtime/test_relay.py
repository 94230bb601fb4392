"""Relay: runs of the outbox reach their queues, each once."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import text

from tests.support.workers import working
from worker import Client, JobContext, Settings, job
from worker.db.engine import Database

RAN: Counter[str] = Counter()


@job
async def note(ctx: JobContext, name: str) -> str:
    """Count each name."""
    RAN[name] += 1
    return name


async def test_runs_exist_when_the_callers_transaction_commits(
    fast: Settings, client: Client, database: Database
) -> None:
    RAN.clear()
    async with working(fast, note):
        async with database.transaction() as session:
            run = await client.enqueue_in(session, note, "async session")
            many = await client.enqueue_many_in(session, note, [{"name": f"many {n}"} for n in range(3)])
        assert await run.result(timeout=120) == "async session"
        assert [await one.result(timeout=120) for one in many] == ["many 0", "many 1", "many 2"]
        async with database.connection() as connection:
            run = await client.enqueue_in(connection, note, "async connection")
            run_id = await connection.scalar(text("SELECT worker.enqueue('note', '{\"name\": \"function\"}')"))
        assert await run.result(timeout=120) == "async connection"
        assert await client.run(run_id).result(timeout=120) == "function"
