"""Every key of the schema, with every wrong type and invalid content, under a running worker."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.sampling import sampled
from tests.support.waiting import until
from tests.support.workers import with_worker, working
from worker import Client, JobContext, Settings, job
from worker.queue import keys
from worker.queue.key_check import find_key_problems

pytestmark = pytest.mark.usefixtures("database")

QUEUE = "arq:queue"
#: One key of each form: those of a run have the id of a run that is in the queue.
VICTIM = "victim"
_NAMES = {"<id>": VICTIM, "<job>": "limited", "<queue>": QUEUE, "<n>": "5", "<mark>": "mark"}
JUNK = b"\xff\x00junk"

ran: list[str] = []


@job
async def echo(ctx: JobContext, name: str) -> str:
    """Run independently of other jobs."""
    ran.append(name)
    return name


@job(concurrency=2, rate="1000/second burst 100")
async def limited(ctx: JobContext) -> str:
    """Have limits."""
    return "limited"


@job
async def sleep(ctx: JobContext) -> None:
    """Wait until the test cancels or releases the run."""
    await asyncio.sleep(60)


def example(name: str) -> str:
    """Return a key of a form of the schema."""
    for part, value in _NAMES.items():
        name = name.replace(part, value)
    return name


async def write(redis: Redis, key: str, kind: str) -> None:
    """Write junk of a type under a key, in one transaction: the worker writes some of them all the time."""
    pipeline = redis.pipeline(transaction=True)
    pipeline.delete(key)
    match kind:
        case "string":
            pipeline.set(key, JUNK)
        case "list":
            pipeline.rpush(key, JUNK)
        case "set":
            pipeline.sadd(key, JUNK)
        case "hash":
            pipeline.hset(key, mapping={JUNK: JUNK})
        case "sorted set":
            pipeline.zadd(key, {JUNK: 1})
        case "stream":
            pipeline.xadd(key, {JUNK: JUNK})
    await pipeline.execute()


KINDS = ("string", "list", "set", "hash", "sorted set", "stream")
KEYS = sorted({example(one.name) for one in keys.SCHEMA} - {QUEUE})


async def _works(client: Client, redis: Redis, what: str) -> None:
    """Check that jobs run and that operator commands take effect, unless the command's own key is broken."""
    run = await client.enqueue(echo, name=what)
    assert await run.result(timeout=120) == what
    assert await (await client.enqueue(limited)).result(timeout=120) == "limited"
    if await redis.type(keys.CANCELLED) in (b"none", b"set"):
        hanging = await client.enqueue(sleep)
        await until(lambda: redis.exists(keys.IN_PROGRESS + hanging.id))
        assert await hanging.cancel()
        await until(lambda: redis.exists(keys.RESULT + hanging.id))


@pytest.mark.parametrize("key", sampled(KEYS, 3))
async def test_a_broken_key_disturbs_no_other_job(
    redis: Redis, client: Client, fast: Settings, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    await redis.flushall()
    settings = with_worker(fast, lease_seconds=2.0, drain_timeout_seconds=5.0, queue_limits={QUEUE: 50})
    async with working(settings, echo, limited, sleep):
        await _works(client, redis, "before")
        for kind in KINDS:
            of_victim = (keys.JOB, keys.RETRY, keys.IN_PROGRESS, keys.RESULT)
            await redis.delete(*(prefix + VICTIM for prefix in of_victim))
            await write(redis, key, kind)
            if VICTIM in key:
                await redis.set(keys.JOB + VICTIM, '{"f":"echo","k":{"name":"victim"}}', nx=True)
                await redis.zadd(QUEUE, {VICTIM: 1})
            await _works(client, redis, kind)
            await redis.zrem(QUEUE, VICTIM)
        began = time.monotonic()  # the worker drains with the last of them in place
    assert time.monotonic() - began < 30
    errors = [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]
    assert [error for error in errors if f"run={VICTIM} " not in error] == []


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "sorted set"])
async def test_a_broken_queue_is_named_and_works_again_when_it_is_mended(
    redis: Redis, client: Client, fast: Settings, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = "arq:other"
    settings = with_worker(fast, lease_seconds=2.0, queues={QUEUE: 1, other: 1})
    async with working(settings, echo):
        await write(redis, other, kind)
        good = [await client.enqueue(echo, name=f"{kind}{number}") for number in range(9)]
        for run in good:
            assert await run.result(timeout=120)
        await until(lambda: _is_logged(caplog, f"key={other}"))
        assert [await redis.get(keys.RETRY + run.id) for run in good] == [None] * 9
        assert sum(f"key={other}" in record.getMessage() for record in caplog.records) == 1
        [problem] = await find_key_problems(redis, [QUEUE, other])
        assert problem.cure == f"RENAME {other} broken:{other}"
        await redis.execute_command(*problem.cure.split())
        run = await client.enqueue(echo.options(queue=other), name="mended")
        assert await run.result(timeout=120) == "mended"
    assert await find_key_problems(redis, [QUEUE, other]) == []


async def test_an_order_of_a_wrong_type_stops_nothing(redis: Redis, client: Client, fast: Settings) -> None:
    """`SET worker:cancelled x`, where SADD was meant."""
    ordered = {keys.CANCELLED, keys.PAUSED, keys.PACE, keys.LIMITS, keys.RATES, keys.DRAINED, keys.RETRIED, keys.ABORT}
    async with working(fast, echo):
        for key in ordered:
            await redis.set(key, "x")
        assert await (await client.enqueue(echo, name="a")).result(timeout=120) == "a"
        problems = {problem.key for problem in await find_key_problems(redis, [QUEUE])}
        assert problems == ordered


@pytest.mark.parametrize("value", ["nan", "inf", "1e400", "-3", "two", "", "9" * 400, JUNK])
async def test_a_value_of_an_order_that_is_none_is_named_once_and_ignored(
    redis: Redis, client: Client, fast: Settings, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(fast, echo, limited):
        for key, field in (
            (keys.LIMITS, QUEUE),
            (keys.LIMITS, "limited"),
            (keys.RATES, "limited"),
            (keys.PACE, "*"),
            (keys.CRON, "nobody * * * * * UTC"),
        ):
            await redis.hset(key, field, value)  # type: ignore[misc]
        for number in range(3):
            assert await (await client.enqueue(limited)).result(timeout=120) == "limited"
            assert await (await client.enqueue(echo, name=str(number))).result(timeout=120) == str(number)
        await until(lambda: _is_logged(caplog, f"key={keys.PACE}"))
        for name in (keys.PACE, keys.RATES):
            assert sum(f"key={name} " in record.getMessage() for record in caplog.records) == 1
        found = {problem.key for problem in await find_key_problems(redis, [QUEUE])}
        assert {keys.LIMITS, keys.RATES, keys.CRON} <= found


async def test_a_limit_that_is_no_whole_number_is_ignored(redis: Redis, client: Client, fast: Settings) -> None:
    await redis.hset(keys.LIMITS, mapping={QUEUE: "1.5", "limited": "0.5"})  # type: ignore[misc]
    async with working(fast, echo, limited):
        assert await (await client.enqueue(limited)).result(timeout=120) == "limited"
    assert len(await find_key_problems(redis, [QUEUE])) == 2


IDS = [b"", JUNK, b"a\nb", b"a\x00b", b"\x1b[31mred", b"x" * 10_000, "\u202egpj".encode()]


async def test_ids_that_cannot_be_printed_become_dead_letters(redis: Redis, client: Client, fast: Settings) -> None:
    for run_id in IDS:
        await redis.set(keys.JOB.encode() + run_id, '{"f":"echo","k":{"name":"never"}}')
        await redis.zadd(QUEUE, {run_id: 1})
    ran.clear()
    async with working(fast, echo):
        assert await (await client.enqueue(echo, name="good")).result(timeout=120) == "good"
        await until(lambda: _is_empty(redis))
    assert ran == ["good"]
    assert await redis.hlen(keys.DEAD) == len(IDS)
    letters = await client.dead_letters()
    assert all(letter.error.startswith("its id of ") for letter in letters)
    assert all(letter.id.isprintable() for letter in letters)
    assert [name for name in await redis.keys("arq:*") if b"result" not in name and b"health" not in name] == []


async def _is_logged(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return text in caplog.text


async def _is_empty(redis: Redis) -> bool:
    return await redis.zcard(QUEUE) == 0


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param(rb'{"f":"echo","k":{"name":"x"},"h":{"tenant":"\ud800"},"then":[{"f":"echo"}]}', id="surrogate"),
        pytest.param(b'{"f":"no_such_job","t":9223372036854775808}', id="attempt"),
        pytest.param(b'{"f":"echo","k":{"name":"x"},"then":[{"f":"echo","q":"worker:dead"}]}', id="queue that is none"),
        pytest.param(b'{"f":"echo","k":{"name":"x"},"then":[{"f":"echo","q":"worker:limit:other"}]}', id="places"),
        pytest.param(b'{"f":"echo","k":{"name":"x"},"g":["worker:dead",1,true]}', id="group that is none"),
        pytest.param(b"[" * 100_000, id="depth"),
    ],
)
async def test_a_hostile_payload_harms_its_own_job_alone(
    redis: Redis, client: Client, fast: Settings, payload: bytes
) -> None:
    await redis.hset("worker:group:worker:dead", "size", "junk")  # type: ignore[misc]
    await redis.hset(keys.DEAD, "somebody", "junk")  # type: ignore[misc]
    await redis.zadd(keys.LIMIT + "other", {"somebody": 1})
    async with working(fast, echo):
        for number in range(10):
            await redis.set(f"{keys.JOB}evil{number}", payload)
            await redis.zadd(QUEUE, {f"evil{number}": 1})
        good = [await client.enqueue(echo, name=str(number)) for number in range(20)]
        for number, run in enumerate(good):
            assert await run.result(timeout=120) == str(number)
        await until(lambda: _is_empty(redis))
        assert await redis.get(keys.RETRY + good[0].id) is None
    assert json.loads(await redis.get(keys.RESULT + "evil0"))["id"] == "evil0"
    assert await redis.zrange(keys.LIMIT + "other", 0, -1) == [b"somebody"]
