"""One look at everything in Redis: what `worker status` and `worker watch` show."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from worker.queue import keys
from worker.queue.codec import now_ms
from worker.settings import Settings

_RUNS_SHOWN = 100


@dataclass(frozen=True)
class Overview:
    """Queue, workers, runs in progress and orders.

    Attributes:
        queue: its name.
        waiting: jobs that are due, and that nobody has.
        deferred: jobs that are due later.
        running: jobs that workers have.
        dead_letters: entries of `worker:dead`.
        paused: orders to pause.
        cancelled: orders to cancel.
        workers: by name, as they describe themselves.
        runs: mirrors of the runs in progress, each with its `id`.
    """

    queue: str
    waiting: int
    deferred: int
    running: int
    dead_letters: int
    paused: list[str]
    cancelled: list[str]
    workers: dict[str, dict[str, Any]]
    runs: list[dict[str, str]]


async def overview(redis: Redis, settings: Settings) -> Overview:
    """Read it all, in two round trips."""
    queue = settings.worker.queue
    pipeline = redis.pipeline(transaction=False)
    pipeline.zcount(queue, "-inf", now_ms())
    pipeline.zcount(queue, f"({now_ms()}", "+inf")
    pipeline.hlen(keys.DEAD)
    pipeline.smembers(keys.PAUSED)
    pipeline.smembers(keys.CANCELLED)
    pipeline.hgetall(keys.WORKERS)
    due, deferred, dead, paused, cancelled, raw_workers = await pipeline.execute()
    workers = {name.decode(): json.loads(text) for name, text in sorted(raw_workers.items())}
    ids = [run_id for worker in workers.values() for run_id in worker["jobs"]][:_RUNS_SHOWN]
    pipeline = redis.pipeline(transaction=False)
    for run_id in ids:
        pipeline.hgetall(keys.RUN + run_id)
    mirrors = await pipeline.execute() if ids else []
    runs = [
        {"id": run_id} | {name.decode(): value.decode() for name, value in mirror.items()}
        for run_id, mirror in zip(ids, mirrors, strict=True)
    ]
    running = sum(len(worker["jobs"]) for worker in workers.values() if worker["queue"] == queue)
    return Overview(
        queue=queue,
        waiting=max(0, due - running),
        deferred=deferred,
        running=running,
        dead_letters=dead,
        paused=sorted(member.decode() for member in paused),
        cancelled=sorted(member.decode() for member in cancelled),
        workers=workers,
        runs=runs,
    )
