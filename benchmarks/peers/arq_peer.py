"""Stock arq, in its own environment."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

from arq.connections import ArqRedis, RedisSettings, create_pool
from arq.constants import default_queue_name, job_key_prefix
from arq.jobs import serialize_job
from arq.utils import timestamp_ms
from arq.worker import Worker
from protocol import SLEEP_SECONDS, TALLY, ready, run, speak

_PIPELINE = 500
_TOGETHER = 50


async def empty(ctx: dict[str, Any]) -> None:
    TALLY.add()


async def sleep(ctx: dict[str, Any]) -> None:
    TALLY.add()
    await asyncio.sleep(SLEEP_SECONDS)


async def stamp(ctx: dict[str, Any], sent_ns: int) -> None:
    TALLY.stamp(sent_ns)


def work(options: argparse.Namespace) -> None:
    """Run a worker; its own handler of SIGTERM cancels it."""

    async def started(ctx: dict[str, Any]) -> None:
        ready()

    async def main() -> None:
        worker = Worker(
            functions=[empty, sleep, stamp],
            redis_settings=RedisSettings.from_dsn(options.url),
            max_jobs=options.slots,
            on_startup=started,
        )
        try:
            await worker.async_run()
        except asyncio.CancelledError:
            pass
        finally:
            await worker.close()

    run(main())


class Sender:
    """arq has no call for many jobs. The fastest way is a pipeline of its two commands, without the check for known
    ids.

    `--way gather` gathers `enqueue_job`.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._gathers = options.way == "gather"
        self._url = options.url
        self._delay = options.delay
        self.redis: ArqRedis

    async def __aenter__(self) -> Sender:
        self.redis = await create_pool(RedisSettings.from_dsn(self._url))
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.redis.aclose(close_connection_pool=True)

    async def one(self, job: str, arguments: dict[str, Any]) -> None:
        await self.redis.enqueue_job(job, _defer_by=self._delay or None, **arguments)

    async def many(self, job: str, arguments: list[dict[str, Any]]) -> None:
        if self._gathers:
            waiting = iter(arguments)
            await asyncio.gather(*(self._send(job, waiting) for _ in range(_TOGETHER)))
            return
        for first in range(0, len(arguments), _PIPELINE):
            async with self.redis.pipeline(transaction=False) as pipe:
                for each in arguments[first : first + _PIPELINE]:
                    job_id, now = uuid4().hex, timestamp_ms()
                    pipe.psetex(job_key_prefix + job_id, 86_400_000, serialize_job(job, (), each, None, now))
                    pipe.zadd(default_queue_name, {job_id: now + round(self._delay * 1000)})
                await pipe.execute()

    async def _send(self, job: str, waiting: Iterator[dict[str, Any]]) -> None:
        for each in waiting:
            await self.one(job, each)


if __name__ == "__main__":
    speak(work, Sender, ways=("gather",))
