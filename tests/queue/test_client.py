"""Enqueueing, waiting and watching: in Python with the job, by name, with stock arq, and with two commands."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import json
import time
import uuid
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from arq.connections import ArqRedis
from pydantic import BaseModel
from redis.asyncio import Redis

from tests.support.waiting import round_trips, script_calls, until
from tests.support.workers import with_worker, working
from worker import Client, InvalidArguments, JobCancelled, JobContext, JobFailed, Settings, job
from worker.db.engine import Database
from worker.errors import ResultTooLarge
from worker.queue import keys

pytestmark = pytest.mark.usefixtures("database")


class Colour(enum.Enum):
    """Goes through JSON by value."""

    red = "r"
    blue = "b"


@dataclasses.dataclass
class Point:
    """A dataclass argument."""

    x: int
    y: float


class Order(BaseModel):
    """A pydantic argument."""

    price: Decimal
    at: datetime


@job
async def add(ctx: JobContext, a: int, b: int = 2) -> int:
    """Return a sum."""
    return a + b


@job
async def echo(
    ctx: JobContext, key: uuid.UUID, at: datetime, price: Decimal, colour: Colour, point: Point, order: Order
) -> tuple[uuid.UUID, datetime, Decimal, Colour, Point, Order]:
    """Return the argument, if it has the annotated type."""
    assert isinstance(key, uuid.UUID)
    assert isinstance(at, datetime)
    assert isinstance(price, Decimal)
    assert isinstance(colour, Colour)
    assert isinstance(point, Point)
    assert isinstance(order, Order)
    return key, at, price, colour, point, order


@job
async def large(ctx: JobContext) -> str:
    """Return a result over the size limit."""
    return "x" * 2_000_000


@job
async def refuse(ctx: JobContext) -> None:
    """Fail permanently."""
    raise ValueError("not today")


JOBS = (add, echo, large, refuse)


async def test_typed_arguments_and_results_come_back_as_they_were(fast: Settings, client: Client) -> None:
    values: dict[str, Any] = {
        "key": uuid.uuid4(),
        "at": datetime(2026, 3, 29, 1, 30, tzinfo=UTC),
        "price": Decimal("10.10"),
        "colour": Colour.blue,
        "point": Point(1, 2.5),
        "order": Order(price=Decimal("0.1"), at=datetime(2026, 1, 1, tzinfo=UTC)),
    }
    run = await client.enqueue(echo, **values)
    async with working(fast, *JOBS):
        assert await run.result(timeout=120) == tuple(values.values())
    assert await run.status() == "succeeded"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "a: field required"),
        ({"a": "x"}, "a: input should be a valid integer"),
        ({"a": 1, "c": 1}, "c: extra inputs are not permitted"),
    ],
)
async def test_wrong_arguments_are_refused_before_anything_reaches_redis(
    client: Client, redis: Redis, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidArguments, match=message):
        await client.enqueue(add, **arguments)
    assert await redis.keys("*") == []


async def test_the_same_id_twice_is_one_run(fast: Settings, client: Client) -> None:
    first = await client.enqueue(add.options(id="one"), 1)
    second = await client.enqueue(add.options(id="one"), 5)
    assert (first.is_new, second.is_new) == (True, False)
    async with working(fast, *JOBS):
        assert await second.result(timeout=120) == 3
        third = await client.enqueue(add.options(id="one"), 7)  # its result is still known
        assert not third.is_new
        assert await third.result(timeout=120) == 3


async def test_delay_and_at_set_the_due_time(client: Client, redis: Redis) -> None:
    now = datetime.now(UTC)
    later = await client.enqueue(add.options(delay=timedelta(minutes=1)), 1)
    at = await client.enqueue(add.options(at=now + timedelta(hours=1)), 1)
    assert await later.status() == "deferred"
    assert abs(await redis.zscore("arq:queue", later.id) / 1000 - now.timestamp() - 60) < 30
    assert abs(await redis.zscore("arq:queue", at.id) / 1000 - now.timestamp() - 3600) < 1


async def test_a_deferred_run_that_is_cancelled_ends_at_once(fast: Settings, client: Client, redis: Redis) -> None:
    run = await client.enqueue(add.options(delay=3600), 1)
    await run.cancel()
    async with working(fast, *JOBS):
        with pytest.raises(JobCancelled):
            await run.result(timeout=120)
    assert await redis.smembers(keys.CANCELLED) == set()
    assert await run.status() == "cancelled"


async def test_a_failure_and_a_large_result_say_so(fast: Settings, client: Client) -> None:
    failing, big = await client.enqueue(refuse), await client.enqueue(large)
    async with working(with_worker(fast, max_attempts=1), *JOBS):
        with pytest.raises(JobFailed, match="ValueError: not today"):
            await failing.result(timeout=120)
        with pytest.raises(ResultTooLarge, match=r"2,000,002 bytes exceeds worker\.max_result_bytes"):
            await big.result(timeout=120)


async def test_what_is_no_job_is_refused(client: Client, redis: Redis) -> None:
    for wrong in (add.function, 42, None):
        with pytest.raises(InvalidArguments, match="is not a job: decorate its function with @job"):
            await client.enqueue(wrong)  # type: ignore[call-overload]
    assert await redis.keys("*") == []


async def test_waiting_has_a_limit(client: Client) -> None:
    run = await client.enqueue(add, 1)
    with pytest.raises(TimeoutError, match=r"has not ended within 0\.05 s; it continues"):
        await run.result(timeout=0.05)


async def test_a_job_by_its_name_is_validated_by_the_worker(fast: Settings, client: Client, redis: Redis) -> None:
    good = await client.enqueue("add", a=1, b=1)
    bad = await client.enqueue("add", a="many")
    async with working(fast, *JOBS):
        assert await good.result(timeout=120) == 2
        with pytest.raises(JobFailed, match="a: input should be a valid integer"):
            await bad.result(timeout=120)
    letter = json.loads(await redis.hget(keys.DEAD, bad.id))
    assert json.loads(letter["payload"])["k"] == {"a": "many"}


async def test_two_commands_of_redis_cli_enqueue(fast: Settings, client: Client, redis: Redis) -> None:
    await redis.set("arq:job:mine", '{"f": "add", "k": {"a": 40}}')
    await redis.zadd("arq:queue", {"mine": 0})
    async with working(fast, *JOBS):
        assert await client.run("mine", add).result(timeout=120) == 42


def stock_client(redis: Redis, **codec: Any) -> ArqRedis:
    """Return arq's own client on the same server."""
    return ArqRedis(redis.connection_pool, **codec)


async def test_a_stock_arq_client_with_json_gets_its_answer(fast: Settings, redis: Redis, database: Database) -> None:
    arq = stock_client(redis, job_serializer=lambda value: json.dumps(value).encode(), job_deserializer=json.loads)
    sent = await arq.enqueue_job("add", 1, b=4)
    assert sent is not None
    async with working(fast, *JOBS):
        assert await sent.result(timeout=120, poll_delay=0.02) == 5


async def test_a_pickle_is_refused_unless_the_setting_admits_it(
    fast: Settings, client: Client, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    sent = await stock_client(redis).enqueue_job("add", 1, b=4)
    assert sent is not None
    async with working(fast, *JOBS):
        await until(lambda: redis.hget(keys.DEAD, sent.job_id))
    assert "worker.accept_pickle = true" in caplog.text
    again = await stock_client(redis).enqueue_job("add", 1, b=4)
    assert again is not None
    async with working(with_worker(fast, accept_pickle=True), *JOBS):
        assert await again.result(timeout=120, poll_delay=0.02) == 5


@job
async def wait_long(ctx: JobContext) -> None:
    """Wait until the test cancels or releases the run."""
    await asyncio.sleep(30)


@job
async def which_try(ctx: JobContext) -> int:
    """Return the number of the attempt."""
    return ctx.attempt


async def test_a_stock_client_that_pickles_aborts_hears_of_errors_and_names_the_try(
    fast: Settings, redis: Redis
) -> None:
    arq = stock_client(redis)
    admits = with_worker(fast, accept_pickle=True, max_attempts=1)
    async with working(admits, refuse, wait_long):
        failing = await arq.enqueue_job("refuse")
        assert failing is not None
        with pytest.raises(RuntimeError, match="ValueError: not today"):
            await failing.result(timeout=120, poll_delay=0.02)
        waiting = await arq.enqueue_job("wait_long")
        deferred = await arq.enqueue_job("wait_long", _defer_by=60)
        assert waiting is not None
        assert deferred is not None
        await until(lambda: redis.exists(keys.IN_PROGRESS + waiting.job_id))
        assert await waiting.abort(timeout=60, poll_delay=0.02)
        assert await deferred.abort(timeout=60, poll_delay=0.02)
    async with working(with_worker(admits, max_attempts=9), which_try):
        third = await arq.enqueue_job("which_try", _job_try=3)
        assert third is not None
        assert await third.result(timeout=120, poll_delay=0.02) == 3


async def test_a_job_that_a_stock_worker_runs_is_not_asked_for_again_and_again(
    fast: Settings, client: Client, redis: Redis
) -> None:
    await redis.set("arq:job:theirs", '{"f": "add", "k": {"a": 1}}')
    await redis.set("arq:in-progress:theirs", "1", px=60_000)
    await redis.zadd("arq:queue", {"theirs": 1})  # it stays due there while it runs

    async with working(fast, *JOBS):
        assert await (await client.enqueue(add, 1)).result(timeout=120) == 3  # behind it in the queue
        before, began = await script_calls(redis), time.monotonic()
        await round_trips(redis, 400)
        polls = (time.monotonic() - began) / fast.worker.poll_interval_seconds
        assert await script_calls(redis) - before < 50 + 3 * polls  # polling without a pause would call 400 times
        assert await (await client.enqueue(add, 2)).result(timeout=120) == 4
        await redis.delete("arq:in-progress:theirs")
        assert await client.run("theirs", add).result(timeout=120) == 3


async def test_progress_reports_until_the_end(fast: Settings, client: Client) -> None:
    run = await client.enqueue(add, 1)
    async with working(fast, *JOBS):
        states = [report.state async for report in run.progress(every=0.01)]
    assert states[-1] == "succeeded"
    assert set(states) <= {"waiting", "running", "succeeded"}


@job(cron="0 3 * * *", unique=True, priority=7)
async def nightly_report(ctx: JobContext, depth: int = 1) -> int:
    """Report."""
    return depth


async def test_a_triggered_cron_job_keeps_the_rules_of_the_job(client: Client, redis: Redis) -> None:
    first = await client.trigger_cron(nightly_report)
    again = await client.trigger_cron(nightly_report)
    other = await client.trigger_cron(nightly_report, {"depth": 2})
    assert (first.is_new, again.is_new, again.id, other.is_new) == (True, False, first.id, True)
    assert await redis.zcard(keys.priority_line("arq:queue", 7)) == 2
    assert first.id.startswith("cron:nightly_report:by-hand:")
    with pytest.raises(InvalidArguments, match="depth"):
        await client.trigger_cron(nightly_report, {"depth": "x"})
