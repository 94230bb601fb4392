"""The overview for operators, from one round trip."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from redis.asyncio import Redis

from tests.queue.test_client import add
from worker import Client, Settings
from worker.queue import keys
from worker.queue.overview import overview


def described(jobs: list[str], seen: datetime) -> str:
    """Return the entry of a worker."""
    return json.dumps(
        {
            "pid": 1,
            "host": "h",
            "queue": "arq:queue",
            "state": "running",
            "jobs": jobs,
            "max_jobs": 10,
            "seen_at": seen.isoformat(),
        }
    )


async def test_a_worker_that_died_without_a_word_is_lost_and_its_run_is_shown_once(
    settings: Settings, client: Client, redis: Redis
) -> None:
    now = datetime.now(UTC)
    run = await client.enqueue(add.options(id="r1"), 1)
    await redis.zincrby("arq:queue", 10_000, run.id)  # as its claim does: due again when its lease ends
    await redis.hset(keys.WORKERS, "dead", described(["r1"], now - timedelta(seconds=15)))
    await redis.hset(keys.WORKERS, "alive", described(["r1"], now))
    await redis.hset(keys.RUN + run.id, mapping={"job": "add", "state": "running", "worker": "alive"})
    seen = await overview(redis, settings)
    assert {name: worker.state for name, worker in seen.workers.items()} == {"dead": "lost", "alive": "running"}
    assert (seen.running, seen.waiting) == (1, 0)
    assert [(one.id, one.state) for one in seen.runs] == [("r1", "running")]


async def test_what_waits_is_listed_with_its_state_and_its_due_time(
    settings: Settings, client: Client, redis: Redis
) -> None:
    await client.enqueue(add.options(id="now"), 1)
    await client.enqueue(add.options(id="later", delay=60), 1)
    await client.enqueue(add.options(id="failing", delay=30), 1)
    await client.enqueue(add.options(id="paused"), 1)
    await redis.hset(keys.RUN + "failing", mapping={"job": "add", "state": "waiting", "error": "ValueError: no"})
    await redis.hset(keys.RUN + "paused", mapping={"job": "add", "state": "paused", "rows": "7"})
    await redis.set("arq:job:odd", b"\x80")
    await redis.zadd("arq:queue", {"odd": 0})
    seen = await overview(redis, settings)
    by_id = {one.id: one.fields for one in seen.runs}
    assert {name: (one["job"], one["state"]) for name, one in by_id.items()} == {
        "now": ("add", "waiting"),
        "later": ("add", "deferred"),
        "failing": ("add", "deferred"),
        "paused": ("add", "paused"),
        "odd": ("?", "waiting"),
    }
    assert 30 < float(by_id["later"]["due_seconds"]) <= 60
    assert by_id["failing"]["error"] == "ValueError: no"
    assert by_id["paused"]["rows"] == "7"
