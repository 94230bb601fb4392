"""Slow workers: frozen past their lease, replaced, and continued."""

from __future__ import annotations

import signal

from redis.asyncio import Redis
from sqlalchemy import text

from tests.faults.conftest import Fleet, effects, fill_targets, ledger_row
from tests.faults.gated import ends_told
from tests.faults.jobs import outlives_its_worker, touch_by_chunks
from tests.support.waiting import until
from worker import Client
from worker.db.engine import Database

ROWS = 3000


async def freeze_in_a_batch(fleet: Fleet, database: Database, name: str) -> None:
    """Freeze a worker inside of a batch, with rows locked."""

    async def in_a_transaction() -> bool:
        async with database.session() as session:
            return bool(
                await session.scalar(
                    text(
                        "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE :name "
                        "AND state = 'idle in transaction' AND (SELECT count(*) FROM audit) > 100"
                    ),
                    {"name": f"longhaul:{name}%"},
                )
            )

    while True:  # until the signal has hit it inside of a batch
        await until(in_a_transaction)
        fleet.kill(name, signal.SIGSTOP)
        if await in_a_transaction():
            break
        fleet.kill(name, signal.SIGCONT)


async def test_the_late_commit_of_a_frozen_worker_does_not_land(
    fleet: Fleet, client: Client, database: Database, redis: Redis
) -> None:
    await fill_targets(database, ROWS)
    frozen = fleet.start()
    run = await client.enqueue(touch_by_chunks, size=20)
    await freeze_in_a_batch(fleet, database, frozen)
    successor = fleet.start()
    assert await run.result(timeout=120) == ROWS
    assert await effects(database) == {1: ROWS}
    fleet.kill(frozen, signal.SIGCONT)

    async def has_noticed() -> bool:
        return "another worker has it" in fleet.log() or "left to its lease" in fleet.log()

    await until(has_noticed)
    fleet.kill(frozen, signal.SIGTERM)
    assert await fleet.ended(frozen) == 0
    assert await effects(database) == {1: ROWS}
    row = await ledger_row(database, run.id)
    assert (row.state, row.owner, row.takeovers) == ("succeeded", successor, 1)
    assert await run.result(timeout=120) == ROWS


async def test_a_drained_run_goes_on_elsewhere_and_costs_no_attempt(
    fleet: Fleet, client: Client, database: Database, redis: Redis
) -> None:
    await fill_targets(database, ROWS)
    first = fleet.start()
    run = await client.enqueue(touch_by_chunks, size=20)

    async def progress() -> int:
        async with database.session() as session:
            return int(await session.scalar(text("SELECT count(*) FROM audit")) or 0)

    await until(progress)
    fleet.kill(first, signal.SIGTERM)
    assert await fleet.ended(first) == 0
    row = await ledger_row(database, run.id)
    assert (row.state, row.attempt, row.takeovers, row.backend_pid) == ("waiting", 1, 0, None)
    assert await redis.get(f"arq:in-progress:{run.id}") is None
    assert await redis.zscore("arq:queue", run.id) is not None
    assert 0 < await progress() < ROWS
    fleet.start()
    assert await run.result(timeout=120) == ROWS
    assert await effects(database) == {1: ROWS}
    row = await ledger_row(database, run.id)
    assert (row.state, row.attempt, row.takeovers) == ("succeeded", 1, 0)


async def names(redis: Redis, key: str) -> list[str]:
    """Return the workers that have registered themselves."""
    found: list[bytes] = await redis.lrange(key, 0, -1)  # type: ignore[misc]
    return [name.decode().split(":")[0] for name in found]


async def test_a_frozen_worker_neither_ends_nor_keeps_jobs_that_no_ledger_knows(
    fleet: Fleet, client: Client, database: Database, redis: Redis
) -> None:
    frozen = fleet.start(LONGHAUL_WORKER__MAX_JOBS="3")
    runs = [
        await client.enqueue(outlives_its_worker.options(id="cancelled")),
        await client.enqueue(outlives_its_worker.options(id="stubborn"), stubborn=True),
        await client.enqueue(outlives_its_worker.options(id="let-go")),
    ]

    async def all_begun(workers: list[str]) -> bool:
        return all([await names(redis, f"begun:{run.id}") == workers for run in runs])

    await until(lambda: all_begun([frozen]))
    fleet.kill(frozen, signal.SIGSTOP)
    successor = fleet.start()
    for run in runs:
        assert (await run.result(timeout=120)).split(":")[0] == successor
        assert await ends_told(redis, run.id) == ["succeeded"]
        assert f"job taken over run={run.id} attempt=2" in fleet.log(successor)
    results = [await redis.get(f"arq:result:{run.id}") for run in runs]
    await redis.set("let-go:let-go", 1)
    fleet.kill(frozen, signal.SIGCONT)

    async def has_noticed() -> bool:
        return fleet.log(frozen).count("another worker has it") == 3

    await until(has_noticed)
    for name in ("cancelled", "stubborn"):
        assert await names(redis, f"cancelled:{name}") == [frozen]
    fleet.kill(frozen, signal.SIGTERM)
    assert await fleet.ended(frozen) == 0
    assert "succeeded" not in fleet.log(frozen)
    assert await all_begun([frozen, successor])
    assert [await redis.get(f"arq:result:{run.id}") for run in runs] == results
    for run in runs:
        assert await ends_told(redis, run.id) == ["succeeded"]
        assert await redis.exists(*(f"arq:{kind}:{run.id}" for kind in ("job", "in-progress", "retry"))) == 0
    assert await redis.zcard("arq:queue") == 0
    assert await redis.hget("worker:jobs", "outlives_its_worker:succeeded") == b"3"  # type: ignore[misc]
