"""The rescuer: no orphan blocks others, however many unfinished runs there are, and no ended run is put back."""

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
from worker.queue.store import QueueStore
from worker.runtime.rescuer import Rescuer

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
            await until(lambda run_id=run_id: _has_no_lease(redis, run_id))  # it is in the queue again
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


async def _has_no_lease(redis: Redis, run_id: str) -> bool:
    return not await redis.exists(keys.IN_PROGRESS + run_id)


async def _state_is(ledger: Ledger, run_id: str, state: str) -> bool:
    known = await ledger.find(run_id)
    return known is not None and known.state == state


@pytest.mark.parametrize("pages", [1, 10])
async def test_orphan_behind_thousands_of_healthy_runs_is_put_back(
    redis: Redis, database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch, pages: int
) -> None:
    async with database.transaction() as session:
        await session.execute(
            text(
                "INSERT INTO worker.run (id, job, queue, payload, arguments, state, fence, attempt, batches_before, "
                "updated_at) SELECT CASE n WHEN 0 THEN 'orphan' ELSE 'run-' || n END, 'walk', 'arq:queue', "
                """'{"f":"walk"}', '', 'paused', 1, 1, 0, """
                "CASE n WHEN 0 THEN now() - interval '1 hour' ELSE now() - interval '1 day' END "
                "FROM generate_series(0, 2500) n"
            )
        )
    await redis.zadd("arq:queue", {f"run-{n}": 9e12 for n in range(1, 2501)})
    monkeypatch.setattr("worker.runtime.rescuer._PAGES_AT_ONCE", pages)
    rescuer = Rescuer(Ledger(database), QueueStore(redis), settings)
    rescued = [await rescuer.run() for _ in range(3)]
    assert rescued == ([0, 0, 1] if pages == 1 else [1, 0, 0])
    assert await redis.zscore("arq:queue", "orphan") is not None
    await redis.delete(keys.JOB + "orphan")
    await redis.zrem("arq:queue", "orphan")
    assert sum([await rescuer.run() for _ in range(3)]) == 1, "it begins again at the oldest run"


@pytest.mark.parametrize("how", ["succeeded", "gone"])
async def test_run_that_ends_while_orphans_are_looked_for_is_not_put_back(
    redis: Redis, database: Database, settings: Settings, how: str
) -> None:
    async with database.transaction() as session:
        await session.execute(
            text(
                "INSERT INTO worker.run (id, job, queue, payload, arguments, state, fence, attempt, batches_before, "
                """updated_at) VALUES ('r', 'walk', 'arq:queue', '{"f":"walk"}', '', 'running', 1, 1, 0, """
                "now() - interval '1 hour')"
            )
        )
    store = QueueStore(redis)
    known = store.known

    async def end_first(run_ids: list[str], queue: str) -> list[bool]:
        change = "SET state = 'succeeded', finished_at = now(), updated_at = now()"
        async with database.transaction() as session:
            await session.execute(text(f"UPDATE worker.run {change}"))
            if how == "gone":
                await session.execute(text("DELETE FROM worker.run"))
        return await known(run_ids, queue)

    store.known = end_first  # type: ignore[method-assign]
    assert await Rescuer(Ledger(database), store, settings).run() == 0
    assert await redis.zcard("arq:queue") == 0
