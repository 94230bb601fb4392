"""Workers die at random moments; each row's effect happens once."""

from __future__ import annotations

import asyncio
import json
import os
import random

import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from tests.faults.conftest import Fleet, effects, fill_targets, ledger_row
from tests.faults.jobs import killed_by_its_data, touch_and_call, touch_by_chunks, touch_by_stream, touch_by_sweep
from tests.support.waiting import until
from worker import Client, Job, JobFailed
from worker.db.engine import Database
from worker.queue import keys

KINDS = [touch_by_chunks, touch_by_stream, touch_by_sweep]


async def kill_and_count(
    fleet: Fleet,
    client: Client,
    database: Database,
    job: Job[..., int],
    *,
    rows: int,
    kills: int,
    size: int,
    pause: float,
    pace: int = 0,
) -> str:
    seed = int(os.environ.get("SEED", random.randrange(1_000_000)))
    print(f"SEED={seed}")
    chance = random.Random(seed)
    await fill_targets(database, rows)
    # On a busy machine the kills can come faster than a first batch: that is for another test (see below).
    patient = {"LONGHAUL_WORKER__MAX_ATTEMPTS": "1000"}
    fleet.start(**patient)
    fleet.start(**patient)
    run = await client.enqueue(job, size=size)
    if pace:  # so that a walk does not end before its kills, however late this process is
        await client.redis.hset(keys.PACE, job.name, pace)

    async def is_owned() -> bool:
        row = await ledger_row(database, run.id)
        return row is not None and row.owner in fleet.processes

    for number in range(kills):
        holder = await fleet.holder(run.id)
        if number == 0:
            await until(is_owned)  # so that one kill at least is a takeover, however slow the machine is
        await asyncio.sleep(chance.uniform(0, pause))  # the random moment
        assert await run.status() != "succeeded", "the walk ended before all kills: make it longer"
        fleet.kill(holder)
        fleet.start(**patient)
    await client.redis.hdel(keys.PACE, job.name)
    assert await run.result(timeout=120) == rows
    assert await effects(database) == {1: rows}
    row = await ledger_row(database, run.id)
    assert row.state == "succeeded"
    # A kill between claim and ledger is no takeover; all the others are.
    assert 0 < row.takeovers <= kills
    return run.id


@pytest.mark.parametrize("job", KINDS, ids=lambda job: job.name)
async def test_kills_leave_each_row_done_once(
    fleet: Fleet, client: Client, database: Database, job: Job[..., int]
) -> None:
    await kill_and_count(
        fleet,
        client,
        database,
        job,
        rows=4_000,
        kills=3,
        size=5 if job is touch_by_sweep else 25,
        pause=0.25,
        pace=200,
    )


@pytest.mark.long
@pytest.mark.parametrize("job", KINDS, ids=lambda job: job.name)
async def test_kills_by_the_hundred_leave_each_row_done_once(
    fleet: Fleet, client: Client, database: Database, job: Job[..., int]
) -> None:
    await kill_and_count(
        fleet, client, database, job, rows=20_000, kills=100, size=2 if job is touch_by_sweep else 10, pause=0.15
    )


@pytest.mark.parametrize("kills", [3, pytest.param(50, marks=pytest.mark.long)])
async def test_kills_leave_each_idempotency_key_with_the_same_rows(
    fleet: Fleet, client: Client, database: Database, redis: Redis, kills: int
) -> None:
    run_id = await kill_and_count(
        fleet, client, database, touch_and_call, rows=4_000, kills=kills, size=30, pause=0.2, pace=200
    )
    calls = [json.loads(call) for call in await redis.lrange(f"calls:{run_id}", 0, -1)]
    pairs = {(key, tuple(rows)) for key, rows in calls}
    assert len(pairs) == len({key for key, _ in pairs}) == len({rows for _, rows in pairs})
    assert {row for _, rows in pairs for row in rows} == set(range(1, 4_001))


async def test_a_batch_that_kills_its_worker_ends_as_dead_with_its_keys(
    fleet: Fleet, client: Client, database: Database
) -> None:
    await fill_targets(database, 100)
    deadly = {"LONGHAUL_WORKER__MAX_ATTEMPTS": "2"}
    for _ in range(2):
        fleet.start(**deadly)
    run = await client.enqueue(killed_by_its_data, deadly=55)

    async def replace_the_dead() -> bool:
        for name, process in list(fleet.processes.items()):
            if process.poll() is not None:
                del fleet.processes[name]
                fleet.start(**deadly)
        return await run.status() == "dead"

    await until(replace_the_dead)
    with pytest.raises(JobFailed, match=r"ended its worker 2 times: 10 rows, keys 51 to 60"):
        await run.result(timeout=120)
    assert await effects(database) == {1: 50, 0: 50}
    assert (await ledger_row(database, run.id)).state == "dead"


async def test_a_dead_workers_job_is_taken_over_within_its_lease(
    fleet: Fleet, client: Client, database: Database, redis: Redis
) -> None:
    await fill_targets(database, 4000)
    first = fleet.start()
    run = await client.enqueue(touch_by_chunks, size=20)

    async def progress() -> int:
        async with database.session() as session:
            return int(await session.scalar(text("SELECT count(*) FROM audit")) or 0)

    await until(progress)
    second = fleet.start()
    assert await fleet.holder(run.id) == first
    fleet.kill(first)
    assert await fleet.holder(run.id) == second
    assert await run.result(timeout=120) == 4000
    assert await effects(database) == {1: 4000}
