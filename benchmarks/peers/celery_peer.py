"""Celery with its Redis transport, in its own environment."""

from __future__ import annotations

import argparse
import contextlib
import threading
import time
from typing import Any

from celery import Celery
from celery.signals import worker_ready
from protocol import SLEEP_SECONDS, TALLY, ready, speak

app = Celery("peer")
_lock = threading.Lock()


@app.task(name="empty")
def empty() -> None:
    with _lock:
        TALLY.add()


@app.task(name="sleep")
def sleep() -> None:
    with _lock:
        TALLY.add()
    time.sleep(SLEEP_SECONDS)


@app.task(name="stamp")
def stamp(sent_ns: int) -> None:
    with _lock:
        TALLY.stamp(sent_ns)


def configure(url: str) -> None:
    """Results are not stored, the default without a result backend."""
    app.conf.update(broker_url=url, worker_redirect_stdouts=False)


def work(options: argparse.Namespace) -> None:
    """Run a worker; its own handler of SIGTERM stops it."""
    configure(options.url)
    # Empty jobs/s: solo 1,250 to 1,400, prefork with two processes 1,180, threads 900 with 100 slots, gevent 470.
    # Jobs that sleep, 100 slots: threads 750, gevent 680.
    pool = "threads" if options.job == "sleep" else "solo"
    worker_ready.connect(lambda **_: ready(), weak=False)
    flags = ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    with contextlib.suppress(SystemExit):
        app.worker_main(
            ["--quiet", "worker", f"--pool={pool}", f"--concurrency={options.slots}", "--loglevel=ERROR", *flags]
        )


class Sender:
    """Enqueue synchronously, one job after the other through one connection: there is no call for many jobs."""

    def __init__(self, options: argparse.Namespace) -> None:
        configure(options.url)
        self._delay = options.delay or None
        self._connection = app.connection_for_write()
        self._producer = app.amqp.Producer(self._connection)

    async def __aenter__(self) -> Sender:
        return self

    async def __aexit__(self, *error: object) -> None:
        self._connection.release()

    async def one(self, job: str, arguments: dict[str, Any]) -> None:
        app.tasks[job].apply_async(kwargs=arguments, countdown=self._delay, producer=self._producer)

    async def many(self, job: str, arguments: list[dict[str, Any]]) -> None:
        for each in arguments:
            await self.one(job, each)


if __name__ == "__main__":
    speak(work, Sender)
