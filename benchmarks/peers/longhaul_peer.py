"""Longhaul, with the project's own interpreter: a worker as started by the command line, and the client."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import threading
import time
from typing import Any
from uuid import uuid4

import redis
from arq.connections import ArqRedis
from protocol import SLEEP_SECONDS, TALLY, ready, speak
from redis.asyncio import Redis as AsyncRedis

from worker import Client, JobContext, job, launch, load_settings
from worker.queue import keys
from worker.runtime.observer import Observer

_TOGETHER = 50


@job
async def empty(ctx: JobContext) -> None:
    TALLY.add()


@job
async def sleep(ctx: JobContext) -> None:
    TALLY.add()
    await asyncio.sleep(SLEEP_SECONDS)


@job
async def stamp(ctx: JobContext, sent_ns: int) -> None:
    TALLY.stamp(sent_ns)


JOBS = {"empty": empty, "sleep": sleep, "stamp": stamp}


def _tell_when_ready(url: str) -> None:
    """Wait until the worker appears in Redis, and report that it is ready."""
    with redis.Redis.from_url(url) as connection:
        while not connection.exists(keys.WORKERS):
            time.sleep(0.02)
    ready()


def work(options: argparse.Namespace) -> None:
    """Run a worker; SIGTERM drains it. The harness names the database in DATABASE_URL."""
    settings = load_settings(
        environment={"DATABASE_URL": os.environ["DATABASE_URL"], "REDIS_URL": options.url},
        # This module is loaded a second time by its name, as a package of jobs; both share one tally.
        overrides={
            "worker": {"packages": ["longhaul_peer"], "max_jobs": options.slots},
            "log": {"level": "WARNING"},
            "metrics": {"port": options.metrics_port},
        },
    )
    threading.Thread(target=_tell_when_ready, args=(options.url,), daemon=True).start()
    launch.main(settings, observer=Unseen(options.url) if options.bare else None)


class Unseen(Observer):
    """Replaces the mirror: writes only one entry, to show that the worker is ready."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def run(self) -> None:
        """Add the worker to Redis, so that it counts as ready."""
        async with AsyncRedis.from_url(self._url) as connection:
            await connection.hset(keys.WORKERS, "bare", "{}")
            await asyncio.Event().wait()


class Sender:
    """Our client; or, by `--way`, stock arq's (with a JSON codec), or two plain commands as one types in redis-cli."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._client = Client(load_settings(environment={"REDIS_URL": options.url}))
        self._delay = options.delay
        self._one = {"arq": self._by_arq, "raw": self._by_hand}.get(options.way, self._ours)

    async def __aenter__(self) -> Sender:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._client.close()

    async def one(self, job: str, arguments: dict[str, Any]) -> None:
        await self._one(job, arguments)

    async def many(self, job: str, arguments: list[dict[str, Any]]) -> None:
        in_one_call = getattr(self._client, "enqueue_many", None)
        if in_one_call is not None:
            await in_one_call(self._job(job), arguments)
            return
        waiting = iter(arguments)

        async def send() -> None:
            for each in waiting:
                await self._ours(job, each)

        await asyncio.gather(*(send() for _ in range(_TOGETHER)))

    def _job(self, name: str) -> Any:
        return JOBS[name].options(delay=self._delay) if self._delay else JOBS[name]

    async def _ours(self, job: str, arguments: dict[str, Any]) -> None:
        await self._client.enqueue(self._job(job), **arguments)

    async def _by_arq(self, job: str, arguments: dict[str, Any]) -> None:
        redis = ArqRedis(self._client.redis.connection_pool, job_serializer=lambda values: json.dumps(values).encode())
        await redis.enqueue_job(job, **arguments)

    async def _by_hand(self, job: str, arguments: dict[str, Any]) -> None:
        run_id = uuid4().hex
        await self._client.redis.set(keys.JOB + run_id, json.dumps({"f": job, "k": arguments}))
        await self._client.redis.zadd("arq:queue", {run_id: time.time_ns() // 1_000_000})


if __name__ == "__main__":
    speak(work, Sender, ways=("arq", "raw"))
