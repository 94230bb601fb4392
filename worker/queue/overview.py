"""A summary of everything in Redis, for `worker status`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from redis.asyncio import Redis

from worker.queue import keys
from worker.queue.payload import now_ms
from worker.settings import Settings

_RUNS_SHOWN = 100


@dataclass(frozen=True)
class Overview:
    """Queue, workers, runs and orders.

    Attributes:
        queue: its name.
        waiting: jobs that are due, and that nobody has.
        deferred: jobs that are due later.
        running: jobs that workers have.
        dead_letters: entries of `worker:dead`.
        paused: orders to pause.
        cancelled: orders to cancel.
        workers: by name, as they describe themselves; `lost` are those that have not been seen for a lease's life.
        runs: the first hundred that work or wait: their mirrors, each with its `id`, and `due_seconds` of those that
            wait.
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
    pipeline.zrange(queue, 0, _RUNS_SHOWN - 1, withscores=True)
    due, deferred, dead, paused, cancelled, raw_workers, entries = await pipeline.execute()
    workers = workers_of(raw_workers, settings.worker.lease_seconds, datetime.now(UTC))
    owners = {
        run_id: name
        for name, worker in workers.items()
        if worker["state"] != "lost" and worker["queue"] == queue
        for run_id in worker["jobs"]
    }
    scores = {run_id.decode(errors="replace"): score for run_id, score in entries}
    ids = list(dict.fromkeys([*list(owners)[:_RUNS_SHOWN], *scores]))
    return Overview(
        queue=queue,
        waiting=due,
        deferred=max(0, deferred - len(owners)),  # what runs is due again when its lease ends
        running=len(owners),
        dead_letters=dead,
        paused=sorted(member.decode() for member in paused),
        cancelled=sorted(member.decode() for member in cancelled),
        workers=workers,
        runs=await _runs(redis, ids, owners, scores),
    )


def workers_of(raw: dict[bytes, bytes], lease_seconds: float, now: datetime) -> dict[str, dict[str, Any]]:
    """Return workers by name, as they describe themselves; what none of ours has written is left out.

    Args:
        raw: fields of `worker:workers`.
        lease_seconds: how long one may say nothing before it is `lost`: it has died without a word, and its jobs are
            somebody else's, or nobody's yet.
        now: the moment.
    """
    workers: dict[str, dict[str, Any]] = {}
    for name, text in sorted(raw.items()):
        try:
            worker = json.loads(text)
            silent = (now - datetime.fromisoformat(worker["seen_at"])).total_seconds()
            _ = worker["state"], worker["queue"], worker["jobs"]
        except (ValueError, KeyError, TypeError):
            continue
        if silent > lease_seconds:
            worker["state"] = "lost"
        workers[name.decode(errors="replace")] = worker
    return workers


async def _runs(redis: Redis, ids: list[str], owners: dict[str, str], scores: dict[str, float]) -> list[dict[str, str]]:
    """Return the runs that work or wait, as their mirrors show them, or as they lie in the queue."""
    if not ids:
        return []
    pipeline = redis.pipeline(transaction=False)
    for run_id in ids:
        pipeline.hgetall(keys.RUN + run_id)
        pipeline.get(keys.JOB + run_id)
    answers = await pipeline.execute()
    runs = []
    for run_id, mirror, payload in zip(ids, answers[::2], answers[1::2], strict=True):
        line = {"id": run_id} | {name.decode(): value.decode() for name, value in mirror.items()}
        line.setdefault("job", _job_of(payload))
        if run_id not in owners:
            seconds = scores.get(run_id, 0.0) / 1000 - now_ms() / 1000
            if line.get("state") != "paused":
                line["state"] = "deferred" if seconds > 0 else "waiting"
            line["due_seconds"] = str(round(max(0.0, seconds), 1))
            line["worker"] = ""
        runs.append(line)
    return runs


def _job_of(payload: bytes | None) -> str:
    try:
        return str(json.loads(payload or b"")["f"])
    except (ValueError, KeyError, TypeError):
        return "?"
