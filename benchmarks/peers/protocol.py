"""The protocol of each side's script: two commands, and JSON lines on stdout.

It uses only the standard library, because it runs in every peer's own environment.

    work --url U --slots N --expect N --job J      a worker until SIGTERM: {"ready": true}; once `expect` jobs have run,
                                                   and once more at the end, the tally; without `expect`,
                                                   {"so_far"} as it grows
    enqueue --url U --job J --count N --way one    {"count", "seconds", "longest_block_ms"}; `--way many`: in one call

Jobs: `empty` counts, `sleep` waits for 10 ms, `stamp` takes the time in ns at which it was enqueued.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

SLEEP_SECONDS = 0.01
_LOOK_SECONDS = 0.05
_TICK_SECONDS = 0.001


class Sender(Protocol):
    """A client, which connects when it is created or entered."""

    async def __aenter__(self) -> Sender: ...
    async def __aexit__(self, *error: object) -> None: ...

    async def one(self, job: str, arguments: dict[str, Any]) -> None:
        """Enqueue one job, deferred if the options set a delay."""

    async def many(self, job: str, arguments: list[dict[str, Any]]) -> None:
        """Enqueue many jobs in the fastest way of this client."""


class Tally:
    """The counts and times of the jobs of this process."""

    def __init__(self) -> None:
        self.count = 0
        self.first_ns = 0
        self.last_ns = 0
        self.latencies_ns: list[int] = []

    def add(self) -> None:
        """Count a job; to be called in its first line."""
        self.last_ns = time.time_ns()
        if not self.count:
            self.first_ns = self.last_ns
        self.count += 1

    def stamp(self, sent_ns: int) -> None:
        """Count a job, and record its latency."""
        self.add()
        self.latencies_ns.append(self.last_ns - sent_ns)

    def told(self) -> dict[str, Any]:
        """Return the tally as a line for the harness."""
        return {"count": self.count, "first_ns": self.first_ns, "last_ns": self.last_ns}


TALLY = Tally()


def say(**values: Any) -> None:
    """Write a line to the harness."""
    sys.stdout.write(json.dumps(values) + "\n")
    sys.stdout.flush()


def ready() -> None:
    """Report that the worker accepts jobs from now on."""
    say(ready=True)


def run(main: Awaitable[Any]) -> Any:
    """Run a coroutine, with uvloop if it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)  # type: ignore[arg-type]
    return uvloop.run(main)  # type: ignore[arg-type]


async def until_signal() -> None:
    """Wait for SIGTERM, for workers without a handler of their own."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()


def speak(
    work: Callable[[argparse.Namespace], None],
    sender: Callable[[argparse.Namespace], Sender],
    *,
    ways: tuple[str, ...] = (),
) -> None:
    """Run the script of one side.

    Args:
        work: runs a worker until SIGTERM; calls `ready`.
        sender: makes a client.
        ways: kinds of clients besides its own, which `sender` looks for in `options.way`.
    """
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    working, sending = commands.add_parser("work"), commands.add_parser("enqueue")
    for each in (working, sending):
        each.add_argument("--url", required=True)
        each.add_argument("--job", choices=("empty", "sleep", "stamp"), default="empty")
    working.add_argument("--slots", type=int, default=100)
    working.add_argument("--expect", type=int, default=0)
    working.add_argument("--bare", action="store_true", help="without what shows it to operators; ours alone")
    working.add_argument("--metrics-port", type=int, help="where metrics are served; ours alone")
    sending.add_argument("--count", type=int, required=True)
    sending.add_argument("--way", choices=("one", "many", *ways), default="one")
    sending.add_argument("--delay", type=float, default=0.0, help="seconds until the jobs are due")
    sending.add_argument("--pause", type=float, default=0.0, help="seconds between two jobs")
    options = parser.parse_args()
    if options.command == "work":
        threading.Thread(target=_watch, args=(options.expect,), daemon=True).start()
        work(options)
        say(ended=True, **TALLY.told(), latencies_ns=TALLY.latencies_ns)
    else:
        run(_enqueue(options, sender(options)))


def _watch(expect: int) -> None:
    told = 0
    while not expect or TALLY.count < expect:
        time.sleep(_LOOK_SECONDS)
        if not expect and TALLY.count != told:
            told = TALLY.count
            say(so_far=told)
    say(**TALLY.told())


async def _enqueue(options: argparse.Namespace, sender: Sender) -> None:
    def arguments() -> dict[str, Any]:
        return {"sent_ns": time.time_ns()} if options.job == "stamp" else {}

    async with sender:
        longest = [0.0]
        if options.way in ("many", "gather"):
            together = [arguments() for _ in range(options.count)]
            ticker = asyncio.create_task(_tick(longest))
            await asyncio.sleep(0.1)
            longest[0] = 0.0
            began = time.perf_counter()
            await sender.many(options.job, together)
            seconds = time.perf_counter() - began
            await asyncio.sleep(10 * _TICK_SECONDS)
            ticker.cancel()
        else:
            await sender.one(options.job, arguments())  # connects; the harness knows of it
            await asyncio.sleep(options.pause)
            began = time.perf_counter()
            for _ in range(options.count - 1):
                await sender.one(options.job, arguments())
                if options.pause:
                    await asyncio.sleep(options.pause)
            seconds = (time.perf_counter() - began) * options.count / max(1, options.count - 1)
        say(count=options.count, seconds=seconds, longest_block_ms=longest[0] * 1000)


async def _tick(longest: list[float]) -> None:
    before = time.perf_counter()
    while True:
        await asyncio.sleep(_TICK_SECONDS)
        now = time.perf_counter()
        longest[0] = max(longest[0], now - before - _TICK_SECONDS)
        before = now
