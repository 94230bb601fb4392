"""streaq, in its own environment."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

from protocol import SLEEP_SECONDS, TALLY, ready, speak
from streaq import Worker


@asynccontextmanager
async def started() -> AsyncIterator[None]:
    """Report that the worker is ready; the worker runs inside the block."""
    ready()
    yield None


async def empty() -> None:
    TALLY.add()


async def sleep() -> None:
    TALLY.add()
    await asyncio.sleep(SLEEP_SECONDS)


async def stamp(sent_ns: int) -> None:
    TALLY.stamp(sent_ns)


def make_worker(url: str, slots: int) -> Worker[None]:
    """Return a worker, which is a client as well."""
    # uvloop is no dependency of streaq, but one option of anyio away.
    worker = Worker(redis_url=url, concurrency=slots, lifespan=started, anyio_kwargs={"use_uvloop": True})
    for function in (empty, sleep, stamp):
        worker.task(function)
    return worker


def work(options: argparse.Namespace) -> None:
    """Run a worker; its own handler of SIGTERM stops it."""
    make_worker(options.url, options.slots).run_sync()


class Sender:
    """`enqueue_many` is a pipeline."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._worker = make_worker(options.url, 1)
        self._delay = options.delay

    async def __aenter__(self) -> Sender:
        await self._worker.__aenter__()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._worker.__aexit__(None, None, None)

    def _task(self, job: str, arguments: dict[str, Any]) -> Any:
        task = self._worker.registry[job].enqueue(**arguments)
        return task.start(delay=timedelta(seconds=self._delay)) if self._delay else task

    async def one(self, job: str, arguments: dict[str, Any]) -> None:
        await self._task(job, arguments)

    async def many(self, job: str, arguments: list[dict[str, Any]]) -> None:
        await self._worker.enqueue_many([self._task(job, each) for each in arguments])


if __name__ == "__main__":
    speak(work, Sender)
