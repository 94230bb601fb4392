"""The reader of `worker top`: its input from Redis, and what a look costs."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from redis.asyncio import Redis

from worker import Client, Settings
from worker.cli.top.reader import LETTERS, MIRRORS, Reader
from worker.queue import keys


async def test_a_look_is_bounded_whatever_there_is(client: Client, redis: Redis, settings: Settings) -> None:
    now = datetime.now(UTC)
    told = {"pid": 1, "host": "h", "queue": "arq:queue", "state": "running", "max_jobs": 20, "done": 1}
    told |= {"started_at": now.isoformat(), "seen_at": (now + timedelta(hours=1)).isoformat()}
    letter = {"job": "a", "queue": "arq:queue", "payload": "{}", "error": "no", "at": now.isoformat(), "attempts": 1}
    pipeline = redis.pipeline(transaction=False)
    for worker in range(50):
        ids = [f"run-{worker}-{number}" for number in range(20)]
        pipeline.hset(keys.WORKERS, f"worker-{worker}", json.dumps(told | {"jobs": ids}))
        for place, run_id in enumerate(ids):
            mirror = {"job": f"job_{place}", "state": "running", "queue": "arq:queue", "started_at": now.isoformat()}
            pipeline.hset(keys.RUN + run_id, mapping=mirror | {"rows": 7})
            pipeline.zadd("arq:queue", {run_id: (time.time() + 60) * 1000})
    for first in range(0, 10_000, 500):
        part = range(first, first + 500)
        pipeline.hset(keys.DEAD, mapping={f"dead-{i}": json.dumps(letter | {"traceback": "x" * 500}) for i in part})
        pipeline.zadd(keys.DEAD_AT, {f"dead-{i}": i for i in part})
        pipeline.zadd("arq:queue", {f"waits-{i}": i for i in part})
    await pipeline.execute()
    reader = Reader(client, settings)
    frame = await reader.read()
    assert (frame.trips, frame.running, frame.failed, len(frame.runs)) == (2, 1000, 10_000, 1000)
    assert [letter.id for letter in frame.failures] == [f"dead-{9_999 - place}" for place in range(LETTERS)]
    on_screen = [f"run-49-{number}" for number in range(20)]
    await redis.config_resetstat()
    looks, commands = 5, 0
    for _ in range(looks):
        frame = await reader.read(on_screen)
        assert frame.trips == 1
        commands += frame.commands
    stats = {name.removeprefix("cmdstat_"): one["calls"] for name, one in (await redis.info("commandstats")).items()}
    asked = sum(stats.values()) - stats.pop("config|resetstat", 0)
    assert asked == commands
    assert frame.commands <= MIRRORS + 80
    assert not stats.keys() & {"hgetall", "smembers", "keys", "hvals", "hkeys"}
    assert stats["hmget"] == looks * MIRRORS  # mirrors; no letter is read twice
    assert (await redis.info("stats"))["total_net_output_bytes"] < looks * 150_000
    # The runs on the screen each time, the others in rotation.
    await redis.hset(keys.RUN + on_screen[0], "rows", 8)
    await redis.hset(keys.RUN + "run-3-3", "rows", 8)
    assert rows_of(await reader.read(on_screen), on_screen[0]) == 8
    for _ in range(6):
        frame = await reader.read(on_screen)
    assert rows_of(frame, "run-3-3") == 8
    assert all(run.job for run in frame.runs)


def rows_of(frame: Any, run_id: str) -> int | None:
    """Return the rows of a run."""
    return next(run.rows for run in frame.runs if run.id == run_id)


async def test_a_run_whose_worker_is_silent_is_lost_and_one_that_has_ended_is_gone(
    client: Client, redis: Redis, settings: Settings
) -> None:
    now = datetime.now(UTC)
    told = {"pid": 1, "host": "h", "queue": "arq:queue", "state": "running", "max_jobs": 2, "done": 1}
    told |= {"jobs": ["one", "two"], "started_at": now.isoformat()}
    await redis.hset(keys.WORKERS, "north", json.dumps(told | {"seen_at": now.isoformat()}))
    for run_id in ("one", "two"):
        await redis.hset(keys.RUN + run_id, mapping={"job": "a", "state": "running", "worker": "north"})
    await redis.hset(keys.RUN + "two", "stalled_since", (now - timedelta(minutes=10)).isoformat())
    reader = Reader(client, settings)
    states = {run.id: (run.state, run.reason) for run in (await reader.read()).runs}
    assert states == {"one": ("running", ""), "two": ("stalled", "no progress for 10 min")}
    silent = (now - timedelta(seconds=11)).isoformat()
    await redis.hset(keys.WORKERS, "north", json.dumps(told | {"seen_at": silent}))
    await redis.hset(keys.RUN + "two", "state", "succeeded")
    frame = await reader.read()
    assert {run.id: run.state for run in frame.runs} == {"one": "lost"}
    assert [(worker.name, worker.state) for worker in frame.workers] == [("north", "lost")]
    assert frame.running == 0
