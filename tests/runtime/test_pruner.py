"""The pruner deletes runs that ended long ago, and nothing else."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from tests.support.waiting import until
from tests.support.workers import with_worker, working
from worker import JobContext, Settings, job
from worker.db.engine import Database
from worker.ledger import Ledger
from worker.ledger.queries import query
from worker.ledger.records import DeletedRun
from worker.queue import keys
from worker.queue.store import QueueStore
from worker.runtime import pruner as prune_module
from worker.runtime.pruner import Pruner

DAY = 86_400.0
_RUN = """
    INSERT INTO worker.run (id, job, queue, payload, arguments, state, fence, attempt, batches_before, finished_at)
    VALUES (:id, 'job', 'arq:queue', '{"f": "job"}', '', :state, 1, 1, 0, now() - make_interval(days => :days))
"""
_PARTS = """
    INSERT INTO worker.step (run_id, name, position, kind, statement, key, fence)
    VALUES (:id, '1-chunks', 1, 'chunks', 'SELECT', '[]', 1)
"""


@job
async def nothing(ctx: JobContext) -> None:
    """Nothing."""


async def insert(
    database: Database, run_id: str, state: str = "succeeded", *, days: int | None = 31, quarantined: bool = False
) -> None:
    """Insert a run that ended some days ago, with a step and a skipped row."""
    async with database.transaction() as session:
        await session.execute(text(_RUN), {"id": run_id, "state": state, "days": days})
        await session.execute(text(_PARTS), {"id": run_id})
        skipped = "INSERT INTO worker.skipped (run_id, step, key) VALUES (:id, '1-chunks', '[1]')"
        await session.execute(text(skipped), {"id": run_id})
        if quarantined:
            aside = "INSERT INTO worker.quarantine (run_id, step, key, error) VALUES (:id, '1-chunks', '[1]', 'no')"
            await session.execute(text(aside), {"id": run_id})


async def left(database: Database, table: str = "run") -> set[str]:
    name = "id" if table == "run" else "run_id"
    async with database.session() as session:
        return set(await session.scalars(text(f"SELECT {name} FROM worker.{table}")))


async def forget(
    database: Database, *, days: float = 30, after: DeletedRun | None = None, limit: int = 100
) -> list[str]:
    ended = await Ledger(database).delete_finished(keep_seconds=days * DAY, after=after, limit=limit)
    return [run.id for run in ended]


async def test_runs_that_ended_long_ago_go_with_their_steps_and_no_others(database: Database) -> None:
    for state in ("succeeded", "dead", "cancelled"):
        await insert(database, f"old {state}", state)
        await insert(database, f"new {state}", state, days=29)
    for state in ("waiting", "running", "paused"):
        await insert(database, state, state, days=None)
    await insert(database, "in quarantine", quarantined=True)
    assert set(await forget(database)) == {"old succeeded", "old dead", "old cancelled"}
    stays = {"new succeeded", "new dead", "new cancelled", "waiting", "running", "paused", "in quarantine"}
    assert await left(database) == await left(database, "step") == await left(database, "skipped") == stays
    assert await left(database, "quarantine") == {"in quarantine"}


async def test_they_go_oldest_first_and_each_call_goes_on_behind_the_last_one(database: Database) -> None:
    for days in range(40, 50):
        await insert(database, f"r{days}", days=days, quarantined=days in (44, 49))
    first = await Ledger(database).delete_finished(keep_seconds=30 * DAY, after=None, limit=3)
    assert [run.id for run in first] == ["r48", "r47", "r46"]
    # A run behind the position of the walk stays until the next walk.
    await insert(database, "older", days=60)
    assert await forget(database, after=first[-1]) == ["r45", "r43", "r42", "r41", "r40"]
    assert await forget(database) == ["older"]
    assert await left(database) == {"r44", "r49"}


async def test_one_that_somebody_puts_back_meanwhile_stays(database: Database) -> None:
    await insert(database, "wanted", "dead")
    await insert(database, "unwanted", "dead")
    async with database.connection() as connection:
        await connection.execute(query("retry_run"), {"id": "wanted"})
        assert await forget(database) == ["unwanted"]  # and does not wait for it
    assert await forget(database) == []
    assert await left(database) == {"wanted"}


async def test_a_walk_over_ended_runs_reads_no_more_than_it_takes(database: Database) -> None:
    async with database.transaction() as session:
        many = """
            INSERT INTO worker.run
                   (id, job, queue, payload, arguments, state, fence, attempt, batches_before, finished_at)
            SELECT n::text, 'job', 'arq:queue', '{}', '', 'succeeded', 1, 1, 0, now() - make_interval(mins => n)
              FROM generate_series(1, 20000) AS n
        """
        await session.execute(text(many))
        await session.execute(text("ANALYZE worker.run"))
        values = {"keep_seconds": 60.0, "after_at": datetime(2000, 1, 1, tzinfo=UTC), "after_id": "", "limit": 100}
        plan = await session.execute(text("EXPLAIN " + query("delete_finished").text), values)
        assert any("run_ended_idx" in line for line in plan.scalars())


# --- by a worker


@pytest.fixture
def pruning(settings: Settings, database: Database, redis: Redis) -> Pruner:
    """The worker's parts that the pruner needs."""
    return Pruner(QueueStore(redis), Ledger(database), with_worker(settings, run_retention_days=30).worker)


async def test_it_goes_on_bit_by_bit_until_nothing_is_left(
    pruning: Pruner, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune_module, "_RUNS_AT_ONCE", 2)
    for days in range(40, 45):
        await insert(database, f"r{days}", days=days)
    counts = []
    for _ in range(6):
        await pruning.look()
        counts.append(len(await left(database)))
    assert counts == [5, 3, 1, 0, 0, 0]


async def test_of_all_workers_one_does_it_once_an_hour(
    pruning: Pruner, database: Database, redis: Redis, settings: Settings
) -> None:
    other = Pruner(QueueStore(redis), Ledger(database), settings.worker)
    await pruning.look()
    assert 3_000 < await redis.ttl(keys.PRUNED) <= 3_600
    await insert(database, "r")
    for _ in range(3):
        await other.look()
    assert await left(database) == {"r"}
    await pruning.look()  # which had begun
    assert await left(database) == set()


@pytest.mark.parametrize("with_ledger", [True, False])
async def test_runs_are_kept_for_ever_where_the_settings_say_so_or_there_is_no_database(
    database: Database, redis: Redis, settings: Settings, with_ledger: bool
) -> None:
    await insert(database, "r", days=10_000)
    rules = with_worker(settings, run_retention_days=0 if with_ledger else 30).worker
    pruning = Pruner(QueueStore(redis), Ledger(database) if with_ledger else None, rules)
    for _ in range(3):
        await pruning.look()
    assert await left(database) == {"r"}


async def test_what_redis_shows_of_a_forgotten_run_goes_with_it(
    pruning: Pruner, database: Database, redis: Redis
) -> None:
    await insert(database, "r", "dead")
    letter = {"queue": "arq:queue", "attempts": 1, "error": "no", "payload": "{}", "ledger": True}
    letter["at"] = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    await redis.hset(keys.DEAD, mapping={name: json.dumps(letter) for name in ("r", "another")})
    await pruning.look()
    await pruning.look()
    assert await redis.hkeys(keys.DEAD) == await redis.zrange(keys.DEAD_AT, 0, -1) == [b"another"]


async def test_orders_to_abort_go_after_a_day_where_there_is_no_such_job(pruning: Pruner, redis: Redis) -> None:
    now_ms = (await pruning._store.time()).timestamp() * 1000
    old, new = now_ms - 1_000 * DAY - 1, now_ms - 1_000 * DAY + 60_000
    await redis.set(keys.JOB + "waits", "{}")
    await redis.zadd(keys.ABORT, {"old": old, "new": new, "waits": old, b"\xff": old})
    assert await pruning.forget_aborts() == 2
    assert sorted(await redis.zrange(keys.ABORT, 0, -1)) == [b"new", b"waits"]
    assert await pruning.forget_aborts() == 0


async def test_very_many_orders_to_abort_go_in_parts(pruning: Pruner, redis: Redis) -> None:
    await redis.zadd(keys.ABORT, {f"id-{n}": n for n in range(1_700)})
    waiting = [f"id-{n}" for n in range(0, 1_700, 2)]
    await redis.mset({keys.JOB + run_id: "{}" for run_id in waiting})
    before = (await redis.info("commandstats")).get("cmdstat_zrem", {}).get("calls", 0)
    assert await pruning.forget_aborts() == 850
    assert set(await redis.zrange(keys.ABORT, 0, -1)) == {run_id.encode() for run_id in waiting}
    assert (await redis.info("commandstats"))["cmdstat_zrem"]["calls"] - before == 4


async def test_an_order_to_abort_that_comes_meanwhile_stays(
    pruning: Pruner, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await redis.zadd(keys.ABORT, {"r": 1})
    looked, come = asyncio.Event(), asyncio.Event()
    pipeline = redis.pipeline

    def slow(*, transaction: bool) -> object:
        made = pipeline(transaction=transaction)
        execute = made.execute

        async def looked_at() -> list[object]:
            found = await execute()
            looked.set()
            await come.wait()
            return list(found)

        if not transaction:
            made.execute = looked_at
        return made

    monkeypatch.setattr(pruning._store.redis, "pipeline", slow)
    task = asyncio.create_task(pruning.forget_aborts())
    await looked.wait()
    other = Redis(connection_pool=redis.connection_pool)
    await other.set(keys.JOB + "r", "{}")
    await other.zadd(keys.ABORT, {"r": 2})
    come.set()
    assert await task == 0
    assert await redis.zscore(keys.ABORT, "r") == 2


async def test_a_worker_does_it_by_itself(database: Database, redis: Redis, fast: Settings) -> None:
    await insert(database, "old")
    await insert(database, "new", days=1)
    await redis.zadd(keys.ABORT, {"old": 1})
    async with working(fast, nothing):

        async def gone() -> bool:
            return await left(database) == {"new"} and not await redis.exists(keys.ABORT)

        await until(gone)


async def test_records_of_orders_go_with_the_runs_of_their_time(
    pruning: Pruner, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prune_module, "_ORDERS_AT_ONCE", 2)
    async with database.transaction() as session:
        for number, days in enumerate([45, 44, 40, 31, 29, 0]):
            await session.execute(
                text(
                    "INSERT INTO worker.operator_order (entry_id, at, order_name, ordered_by) "
                    "VALUES (:entry, now() - make_interval(days => :days), 'pause', 'cli:me')"
                ),
                {"entry": f"{number}-0", "days": days},
            )
    counts = []
    for _ in range(5):
        await pruning.look()
        async with database.session() as session:
            counts.append(await session.scalar(text("SELECT count(*) FROM worker.operator_order")))
    assert counts == [6, 4, 2, 2, 2]
