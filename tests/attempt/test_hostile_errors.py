"""Whatever a job raises, in whatever way, its attempt ends at once, counts, and the run ends with that error."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import select

from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.waiting import until
from tests.support.workers import working
from worker import Client, JobContext, JobFailed, Retry, Settings, job
from worker.db.engine import Database


class Hard(BaseException):
    """No `Exception`."""


class Mute(Exception):
    """Its message cannot be read."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Forwarding(Exception):
    """Forwards attributes to an object that it does not have: each read of an unknown one is an endless recursion."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self.response, name)


class Refusing(Exception):
    """Refuses to show attributes that its handlers read."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("orig", "sqlstate", "retryable", "__notes__"):
            raise RuntimeError(f"no {name}")
        return super().__getattribute__(name)


def raising(error: BaseException) -> Callable[[], Awaitable[None]]:
    async def fail() -> None:
        raise error

    return fail


def in_a_circle() -> BaseException:
    first, second = ValueError("first"), ValueError("second")
    first.__cause__, second.__cause__ = second, first
    return first


async def fail_in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(60))
        group.create_task(raising(ValueError("in a group"))())  # type: ignore[arg-type]


async def exit_in_a_group() -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(raising(Hard("in a group"))())  # type: ignore[arg-type]


async def time_out() -> None:
    async with asyncio.timeout(0.01):
        await asyncio.sleep(60)


async def cancel_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(60)


async def cancel_itself_and_return() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()


async def await_a_cancelled_task() -> None:
    task = asyncio.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    task.cancel()
    await task


#: What a job does, and a part of the error of its run.
WAYS: dict[str, tuple[Callable[[], Awaitable[None]], str]] = {
    "base": (raising(Hard("stop")), "Hard: stop"),
    "group": (raising(ExceptionGroup("all", [ValueError("v"), KeyError("k")])), "ExceptionGroup: all"),
    "base group": (raising(BaseExceptionGroup("all", [Hard("h"), ValueError("v")])), "BaseExceptionGroup: all"),
    "cancelled group": (raising(BaseExceptionGroup("all", [asyncio.CancelledError()])), "BaseExceptionGroup: all"),
    "async iteration": (raising(StopAsyncIteration("end")), "StopAsyncIteration: end"),
    "iteration": (raising(StopIteration("end")), "coroutine raised StopIteration"),
    "generator": (raising(GeneratorExit("end")), "GeneratorExit: end"),
    "cancelled": (raising(asyncio.CancelledError("by hand")), "the job cancelled itself"),
    "cancels": (cancel_itself, "the job cancelled itself"),
    "cancels late": (cancel_itself_and_return, "the job cancelled itself"),
    "cancelled task": (await_a_cancelled_task, "the job cancelled itself"),
    "keyboard": (raising(KeyboardInterrupt()), "KeyboardInterrupt"),
    "exit": (raising(SystemExit(3)), "SystemExit"),
    "task group": (fail_in_a_group, "ExceptionGroup"),
    "hard task group": (exit_in_a_group, "BaseExceptionGroup"),
    "timeout": (time_out, "TimeoutError"),
    "mute": (raising(Mute()), "Mute: (its message cannot be read"),
    "forwarding": (raising(Forwarding("lost")), "Forwarding: lost"),
    "refusing": (raising(Refusing("shy")), "Refusing"),
    "circle": (raising(in_a_circle()), "ValueError: first"),
    "recursion": (raising(RecursionError("deep")), "RecursionError: deep"),
    "memory": (raising(MemoryError("full")), "MemoryError: full"),
    "reset": (raising(ConnectionResetError("its own")), "ConnectionResetError: its own"),
    "surrogate": (raising(FileNotFoundError("caf\udce9\x00")), "FileNotFoundError: caf\\udce9"),
}
#: Which cost no second attempt.
FINAL = {"keyboard", "exit"}

_begun: Counter[tuple[str, str]] = Counter()


@job(max_attempts=2, backoff=0)
async def fail_plainly(ctx: JobContext, way: str) -> None:
    _begun["plain", way] += 1
    await WAYS[way][0]()


@job(max_attempts=2, backoff=0)
async def fail_in_batch(ctx: JobContext, way: str) -> None:
    async for _ in ctx.chunks(select(Author), size=1):
        _begun["batch", way] += 1
        await WAYS[way][0]()


@job(max_attempts=2, backoff=0)
async def fail_in_step(ctx: JobContext, way: str) -> None:
    async def work() -> None:
        _begun["step", way] += 1
        await WAYS[way][0]()

    await ctx.step("work", work)


async def test_every_way_to_fail_ends_the_run_with_its_error(
    database: Database, redis: Redis, client: Client, fast: Settings
) -> None:
    _begun.clear()
    await fill_authors(database, 1)
    jobs = {"plain": fail_plainly, "batch": fail_in_batch, "step": fail_in_step}
    async with working(fast, *jobs.values()):
        runs = {(kind, way): await client.enqueue(each, way=way) for kind, each in jobs.items() for way in WAYS}
        for (kind, way), run in runs.items():
            if (kind, way) == ("step", "cancels late"):
                await run.result(timeout=30)  # the step has its result before the cancellation arrives
                continue
            with pytest.raises(JobFailed) as failed:
                await run.result(timeout=30)
            assert WAYS[way][1] in str(failed.value), (kind, way)
            assert _begun[kind, way] == (1 if way in FINAL else 2), (kind, way)


@job(max_attempts=2, backoff=lambda attempt: 1 / 0)
async def back_off_wrongly(ctx: JobContext) -> None:
    raise ValueError("first")


@pytest.mark.parametrize("seconds", [math.inf, math.nan, -math.inf, 1e300])
async def test_a_delay_without_bounds_is_bounded(
    database: Database, redis: Redis, client: Client, fast: Settings, seconds: float
) -> None:
    @job(name="ask_again")
    async def ask_again(ctx: JobContext) -> int:
        if ctx.attempt == 1:
            raise Retry(after=seconds)
        return ctx.attempt

    async with working(fast, ask_again, back_off_wrongly):
        run = await client.enqueue(ask_again)
        wrong = await client.enqueue(back_off_wrongly)
        with pytest.raises(JobFailed, match="cannot be handled: ZeroDivisionError"):
            await wrong.result(timeout=30)
        if seconds > 0:

            async def is_far_ahead() -> bool:
                return (await redis.zscore("arq:queue", run.id) or 0) > (time.time() + 300 * 86400) * 1000

            await until(is_far_ahead)
        else:
            assert await run.result(timeout=30) == 2
