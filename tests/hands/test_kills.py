"""Workers of a walk with several hands die or freeze at random moments; each row's effect happens once."""

from __future__ import annotations

import asyncio
import os
import random
import signal

import pytest
from sqlalchemy import text

from tests.faults.conftest import Fleet, effects, fill_targets, fleet, ledger_row
from tests.faults.jobs import stream_by_hands, sweep_by_hands, touch_by_hands
from tests.support.waiting import until
from worker import Client, Job
from worker.db.engine import Database
from worker.queue import keys

__all__ = ["fleet"]

KINDS = [touch_by_hands, sweep_by_hands, stream_by_hands]
PATIENT = {"LONGHAUL_WORKER__MAX_ATTEMPTS": "1000"}


async def kill_and_audit(
    fleet: Fleet,
    client: Client,
    database: Database,
    job: Job[..., int],
    *,
    workers: int,
    rows: int,
    size: int,
    kills: int,
    pace: int,
    partitions: int = 0,
) -> None:
    """Kill or freeze random workers of a walk, and start others; count the effects of each row."""
    seed = int(os.environ.get("SEED", random.randrange(1_000_000)))
    print(f"SEED={seed}")
    chance = random.Random(seed)
    await fill_targets(database, rows, partitions=partitions)
    for _ in range(workers):
        fleet.start(**PATIENT)
    run = await client.enqueue(job, size=size)
    await client.redis.hset(keys.PACE, job.name, pace)  # so that the walk does not end before its kills
    await fleet.holder(run.id)
    frozen: list[str] = []
    for number in range(kills):
        await asyncio.sleep(chance.uniform(0.05, 0.5))  # the random moment
        assert await run.status() != "succeeded", "the walk ended before all kills: make it longer"
        # The first two hit the worker of the run itself.
        name = await fleet.holder(run.id) if number < 2 else chance.choice(sorted(set(fleet.processes) - set(frozen)))
        if chance.random() < 0.3:
            fleet.kill(name, signal.SIGSTOP)
            frozen.append(name)
        else:
            fleet.kill(name)
        frozen = [each for each in frozen if each in fleet.processes]
        if len(frozen) > 2:
            fleet.kill(frozen.pop(0), signal.SIGCONT)
        if len(fleet.processes) - len(frozen) < workers:  # a worker that was frozen works again
            fleet.start(**PATIENT)
    await client.redis.hdel(keys.PACE, job.name)
    assert await run.result(timeout=600) == rows  # of the long form, most are left after the kills
    assert await effects(database) == {1: rows}
    assert (await ledger_row(database, run.id)).state == "succeeded"


@pytest.mark.parametrize("job", KINDS, ids=lambda job: job.name)
async def test_kills_of_hands_leave_each_row_done_once(
    fleet: Fleet, client: Client, database: Database, job: Job[..., int]
) -> None:
    await kill_and_audit(fleet, client, database, job, workers=3, rows=2_000, size=10, kills=3, pace=300)


async def test_kills_of_hands_on_a_partitioned_table_leave_each_row_done_once(
    fleet: Fleet, client: Client, database: Database
) -> None:
    options = {"workers": 3, "rows": 2_000, "size": 10, "kills": 3, "pace": 300, "partitions": 3}
    await kill_and_audit(fleet, client, database, touch_by_hands, **options)


@pytest.mark.long
@pytest.mark.parametrize("partitions", [0, 5])
@pytest.mark.parametrize("job", KINDS, ids=lambda job: job.name)
async def test_hundreds_of_kills_of_hands_leave_each_row_done_once(
    fleet: Fleet, client: Client, database: Database, job: Job[..., int], partitions: int
) -> None:
    kills = 100 if partitions else 300
    options = {"workers": 4, "rows": 400 * kills, "size": 10, "kills": kills, "pace": 400}
    await kill_and_audit(fleet, client, database, job, partitions=partitions, **options)


@pytest.mark.parametrize("signum", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.long)])
async def test_a_run_takes_the_range_of_a_helper_whose_worker_is_gone_without_another_worker(
    fleet: Fleet, client: Client, database: Database, signum: signal.Signals
) -> None:
    await fill_targets(database, 3_000)
    await client.redis.hset(keys.PACE, touch_by_hands.name, 200)  # so that the walk outlasts the start of a worker
    first = fleet.start(LONGHAUL_WORKER__MAX_JOBS="1")
    run = await client.enqueue(touch_by_hands, size=10)
    assert await fleet.holder(run.id) == first
    second = fleet.start(LONGHAUL_WORKER__MAX_JOBS="1")

    async def helper_walks() -> bool:
        async with database.session() as session:
            owned = "SELECT count(*) FROM worker.step_range WHERE owner LIKE '%hand-%' AND rows > 0 AND NOT done"
            return bool(await session.scalar(text(owned)))

    await until(helper_walks)
    fleet.kill(second, signum)
    await client.redis.hdel(keys.PACE, touch_by_hands.name)
    assert await run.result(timeout=120) == 3_000
    assert await effects(database) == {1: 3_000}
    async with database.session() as session:
        owners = await session.execute(text("SELECT owner, count(*) FROM worker.step_range GROUP BY owner"))
        found = {row.owner: row.count for row in owners}
    assert found[run.id] > 12  # of 24, with the one that was open
