"""Commands for very many runs are read in pages, hold no other job up, and are obeyed."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.waiting import until, until_true
from tests.support.workers import working
from worker import Client, JobCancelled, JobContext, Settings, job
from worker.queue import keys
from worker.queue.payload import now_ms
from worker.runtime.operator_keys import SCANS, Command, CommandScan
from worker.runtime.operator_state import OperatorState

MANY = 20_000
ran: list[str] = []


@job
async def ping(ctx: JobContext) -> str:
    """Note that it has begun."""
    ran.append(ctx.run_id)
    return "pong"


@job
async def nap(ctx: JobContext) -> None:
    """Runs until it is cancelled."""
    ran.append(ctx.run_id)
    await asyncio.Event().wait()


async def fill(redis: Redis, *, but: Sequence[str] = ()) -> None:
    """Write a command for each of many runs into each key."""
    for first in range(0, MANY, 5_000):
        names = [f"id-{n}" for n in range(first, first + 5_000)]
        pipeline = redis.pipeline(transaction=False)
        for key, scan in SCANS.items():
            if key in but:
                continue
            if scan == "SSCAN":
                pipeline.sadd(key, *names)
            elif scan == "ZSCAN":
                pipeline.zadd(key, dict.fromkeys(names, now_ms()))  # not so old that it is pruned
            else:
                pipeline.hset(key, mapping=dict.fromkeys(names, "5"))
        await pipeline.execute()


async def calls(redis: Redis, command: str) -> int:
    return int((await redis.info("commandstats")).get(f"cmdstat_{command}", {}).get("calls", 0))


def sender(redis: Redis, sizes: list[int]) -> Any:
    async def send(commands: Sequence[Command]) -> Sequence[Any]:
        pipeline = redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        answers = await pipeline.execute(raise_on_error=False)
        sizes.extend(len(answer[1]) for answer in answers if isinstance(answer, (list, tuple)))
        return answers

    return send


async def test_scan_reads_every_entry_of_every_key_in_bounded_pages(redis: Redis) -> None:
    await fill(redis)
    sizes: list[int] = []
    scan = CommandScan()
    await scan.run(sender(redis, sizes), [])
    every = {f"id-{n}" for n in range(MANY)}
    assert all(scan.names[key] == every for key, how in SCANS.items() if how != "HSCAN")
    assert scan.paces == dict.fromkeys(every, 5.0)
    assert max(sizes) < 2_000
    assert not scan.problems


async def test_scan_reports_some_of_very_many_problems(redis: Redis) -> None:
    await redis.hset(keys.PACE, mapping={f"id-{n}": "junk" for n in range(2_000)} | {"good": "7"})
    await redis.sadd(keys.PAUSED, *[b"\xff%d" % n for n in range(2_000)], "good")
    await redis.set(keys.CANCELLED, "SADD was meant")
    scan = CommandScan()
    await scan.run(sender(redis, []), ["no-such-key"])
    assert scan.paces == {"good": 7.0}
    assert scan.names[keys.PAUSED] == {"good"}
    assert scan.unreadable == {keys.CANCELLED}
    assert len(scan.problems) == 41
    assert not scan.exists


@pytest.mark.usefixtures("database")
async def test_jobs_begin_and_obey_while_there_are_commands_for_very_many_others(
    redis: Redis, client: Client, fast: Settings
) -> None:
    ran.clear()
    await fill(redis, but=[keys.RETRIED, keys.PARKED])
    async with working(fast, ping, nap) as worker:
        state = worker.operator_state
        assert len(state.paused) == MANY
        await until_true(lambda: not (state._stale or state._reading.locked()))  # the listener's start was a change
        assert await (await client.enqueue(ping)).result(timeout=120) == "pong"  # and that for commands by argument
        rest, state._rest_until = state._rest_until, math.inf  # a change that arrives late would cause another scan
        await until_true(lambda: not state._reading.locked())
        scans, whole = await calls(redis, "sscan"), await calls(redis, "smembers")
        for _ in range(20):
            assert await (await client.enqueue(ping)).result(timeout=120) == "pong"
        assert await calls(redis, "sscan") == scans, "a claim reads its own commands only"
        assert await calls(redis, "smembers") == whole
        state._rest_until = rest
        running = await client.enqueue(nap.options(id="running"))
        await until_true(lambda: "running" in ran)
        await running.cancel()
        with pytest.raises(JobCancelled):
            await running.result(timeout=120)


@pytest.mark.usefixtures("database")
async def test_command_given_before_the_claim_is_obeyed_before_the_next_scan(
    redis: Redis, client: Client, fast: Settings
) -> None:
    ran.clear()
    await fill(redis, but=[keys.RETRIED, keys.PARKED])
    async with working(fast, ping) as worker:
        worker.operator_state._rest_until = asyncio.get_running_loop().time() + 3600  # no scan any more
        cancelled = await client.enqueue(ping.options(id="cancelled", delay=3))
        await client.enqueue(ping.options(id="paused", delay=3))
        await redis.sadd(keys.CANCELLED, "cancelled")
        await redis.sadd(keys.PAUSED, "paused")
        with pytest.raises(JobCancelled):
            await cancelled.result(timeout=120)
        await until(lambda: redis.hexists(keys.PARKED_RUNS + "paused", "paused"))
        assert ran == []


async def test_answer_during_a_scan_is_newer_than_its_pages(redis: Redis) -> None:
    await fill(redis)
    state = OperatorState(redis)
    send, pages = state._send, 0

    async def send_and_change(commands: Sequence[Command]) -> Sequence[Any]:
        nonlocal pages
        answers = await send(commands)
        if commands[0][0] == "SSCAN":
            pages += 1
            if pages == 2:  # every name that the first page had is taken back, and a new one is written
                await redis.delete(keys.CANCELLED, keys.ABORT)
                await redis.sadd(keys.CANCELLED, "new")
                await state.ask(["new", *(f"id-{n}" for n in range(MANY))])
        return answers

    state._send = send_and_change  # type: ignore[method-assign]
    await state.refresh(now=True)
    assert state.cancelled == {"new"}
    assert len(state.paused) == MANY
    await state.ask(["new"])
    assert state.cancelled == {"new"}
