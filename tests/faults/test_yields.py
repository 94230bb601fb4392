"""Walks that yield under load, with limits, turns, priorities, hands, commands and kills."""

from __future__ import annotations

import asyncio
import os
import random
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from tests.faults.conftest import Fleet, effects, fill_targets
from tests.faults.yield_jobs import HURRY, fair_walk, high_walk, quick, shared_walk, single_walk, sleeper
from tests.support.waiting import until
from worker import Client, Run
from worker.db.engine import Database
from worker.queue import keys

SETTINGS = {
    "LONGHAUL_WORKER__PACKAGES": '["tests.faults.yield_jobs"]',
    "LONGHAUL_WORKER__MAX_JOBS": "2",
    "LONGHAUL_WORKER__MAX_ATTEMPTS": "1000",
}
#: The kinds of keys that stay when all runs have ended.
LEFT = {"events", "jobs", "log", "orders", "pruned", "run", "workers"}


async def enqueue_all(client: Client, times: int) -> list[Run[Any]]:
    """Enqueue walks of each kind."""
    runs: list[Run[Any]] = []
    for number in range(times):
        runs.append(await client.enqueue(fair_walk, tenant=f"t{number}"))
        kinds = (single_walk, high_walk, shared_walk, sleeper)
        runs += [await client.enqueue(kind, number=number) for kind in kinds]
    return runs


async def count_yields(redis: Redis) -> int:
    """Return how many runs have yielded, according to the events."""
    events = await redis.xrange(keys.EVENTS)
    return sum(event[b"event"] == b"yielded" for _, event in events)


async def walks_that_are_left(database: Database) -> dict[str, str]:
    """Return the runs that have not succeeded."""
    async with database.session() as session:
        rows = await session.execute(
            text("SELECT id, state FROM worker.run WHERE state <> 'succeeded' AND parent IS NULL")
        )
        return {row.id: row.state for row in rows}


@pytest.mark.parametrize("kills", [0, 3, pytest.param(60, marks=pytest.mark.long)])
async def test_walks_that_yield_end_once_each_whatever_waits(
    fleet: Fleet, client: Client, database: Database, redis: Redis, kills: int
) -> None:
    seed = int(os.environ.get("SEED", random.randrange(1_000_000)))
    print(f"SEED={seed}")
    chance = random.Random(seed)
    rows, times = (200, 1) if kills < 60 else (1_600, 2)
    await fill_targets(database, rows)
    for _ in range(2):
        fleet.start(**SETTINGS)
    runs = await enqueue_all(client, times)

    async def has_yielded() -> bool:
        return await count_yields(redis) > 0

    await until(has_yielded)
    await redis.set(HURRY, 1)
    small: list[Run[Any]] = []
    for _ in range(kills or 3):
        small += [await client.enqueue(quick, tenant=f"t{chance.randrange(3)}") for _ in range(6)]
        await asyncio.sleep(chance.uniform(0, 1.0))  # the random moment
        held = chance.choice(runs)
        await client.pause(held.id)
        if kills:
            fleet.kill(chance.choice(sorted(fleet.processes)))
            fleet.start(**SETTINGS)
        await asyncio.sleep(chance.uniform(0, 0.3))
        await client.resume(held.id)
    results = await asyncio.gather(*(run.result(timeout=110) for run in [*runs, *small]), return_exceptions=True)
    assert not [one for one in results if isinstance(one, BaseException)], (results, fleet.log()[-3000:])
    assert await effects(database) == {4 * times: rows}
    assert await walks_that_are_left(database) == {}
    if not kills:
        assert set(results) == {1}, results

    async def is_empty() -> bool:
        return bool(await redis.zcard("arq:queue") == 0)

    await until(is_empty)
    left = {key.decode().split(":")[1] for key in await redis.keys("worker:*")}
    assert left <= LEFT, "a place, a mark, a turn or a parked run is left"
