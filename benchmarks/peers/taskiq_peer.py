"""taskiq with the broker of Redis streams, in its own environment."""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

from protocol import SLEEP_SECONDS, TALLY, ready, speak
from taskiq import TaskiqEvents
from taskiq.cli.worker.args import WorkerArgs
from taskiq.cli.worker.run import start_listen
from taskiq_redis import RedisStreamBroker

_TOGETHER = 50


async def empty() -> None:
    TALLY.add()


async def sleep() -> None:
    TALLY.add()
    await asyncio.sleep(SLEEP_SECONDS)


async def stamp(sent_ns: int) -> None:
    TALLY.stamp(sent_ns)


def make_broker(url: str) -> RedisStreamBroker:
    """Return a broker that knows the jobs. It has no result backend, the default, so results are not stored."""
    broker = RedisStreamBroker(url)
    for function in (empty, sleep, stamp):
        broker.register_task(function, task_name=function.__name__)
    return broker


def work(options: argparse.Namespace) -> None:
    """Run a worker as `taskiq worker` does in each of its processes; uvloop is used where it is installed."""
    broker = make_broker(options.url)
    broker.add_event_handler(TaskiqEvents.WORKER_STARTUP, lambda state: ready())
    start_listen(
        WorkerArgs(
            broker=broker,  # type: ignore[arg-type]
            modules=[],
            max_async_tasks=options.slots,
            configure_logging=False,
        )
    )


class Sender:
    """Gather calls of `kiq`: there is no call for many jobs. A delay needs a scheduler process, and is not measured."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._broker = make_broker(options.url)

    async def __aenter__(self) -> Sender:
        await self._broker.startup()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._broker.shutdown()

    async def one(self, job: str, arguments: dict[str, Any]) -> None:
        await self._broker.find_task(job).kiq(**arguments)

    async def many(self, job: str, arguments: list[dict[str, Any]]) -> None:
        waiting = iter(arguments)

        async def send() -> None:
            for each in waiting:
                await self.one(job, each)

        await asyncio.gather(*(send() for _ in range(_TOGETHER)))


if __name__ == "__main__":
    speak(work, Sender)
