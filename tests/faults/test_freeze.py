"""Workers that are slow, not dead: frozen past their lease, replaced, and then continued."""

from __future__ import annotations

import signal

from redis.asyncio import Redis
from sqlalchemy import text

from tests.faults.conftest import Fleet, effects, fill_targets, ledger_row
from tests.faults.jobs import touch_by_chunks
from tests.waiting import until
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
    assert await run.result(timeout=60) == ROWS
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
    assert await run.result(timeout=5) == ROWS


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
    assert await run.result(timeout=60) == ROWS
    assert await effects(database) == {1: ROWS}
    row = await ledger_row(database, run.id)
    assert (row.state, row.attempt, row.takeovers) == ("succeeded", 1, 0)
