"""`Worker` with arq's arguments implements arq's documentation of each; a stock arq client enqueues and reads."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
import logging
import pickle
import re
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import pytest_asyncio
from arq import Retry as ArqRetry
from arq import create_pool, cron
from arq import func as arq_func
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import DeserializationError, JobStatus, ResultNotFound, SerializationError
from arq.jobs import Job as ArqJob
from arq.worker import FailedJobs, JobExecutionFailed, Retry, RetryJob
from arq.worker import Worker as StockWorker
from redis.asyncio import Redis
from redis.asyncio.sentinel import Sentinel
from sqlalchemy import select

from tests.faults.conftest import effects, fill_targets
from tests.models import Target
from tests.support.waiting import round_trips, until
from worker import Client, JobContext, ServerUnavailable, Settings, job
from worker import Retry as OurRetry
from worker.arq_compat import Worker, create_worker, get_kwargs, run_worker
from worker.db.engine import Database
from worker.errors import RegistrationError
from worker.queue import keys
from worker.settings import load_settings

seen: list[Any] = []
gate: dict[str, asyncio.Event] = {}


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Clear the records of the previous test."""
    seen.clear()
    gate.clear()
    gate["go"] = asyncio.Event()


async def add(ctx: dict[Any, Any], a: int, b: int = 2) -> int:
    """Return a sum."""
    seen.append(ctx["job_id"])
    return a + b


async def look(ctx: dict[Any, Any]) -> dict[str, Any]:
    """Return the values of the context."""
    assert isinstance(ctx["redis"], ArqRedis)
    return {name: value for name, value in ctx.items() if name != "redis"}


async def fail(ctx: dict[Any, Any]) -> None:
    """Fail."""
    seen.append(ctx["job_try"])
    raise ValueError("not today")


async def again(ctx: dict[Any, Any], times: int, defer: float | None = None) -> int:
    """Request a number of further attempts."""
    seen.append(time.time())
    if ctx["job_try"] <= times:
        raise Retry(defer=defer)
    return int(ctx["job_try"])


async def hang(ctx: dict[Any, Any]) -> str:
    """Wait for a gate that may never open."""
    seen.append(ctx["job_try"])
    await gate["go"].wait()
    return "went"


async def deaf(ctx: dict[Any, Any]) -> None:
    """Swallow the interruption."""
    while not gate["go"].is_set():
        with suppress(asyncio.CancelledError):
            await gate["go"].wait()
    seen.append("ended")


async def leave(ctx: dict[Any, Any]) -> None:
    """Exit."""
    raise SystemExit(3)


MakeWorker = Callable[..., Worker]


@pytest_asyncio.fixture
async def arq(settings: Settings, redis: Redis) -> AsyncIterator[ArqRedis]:
    """The stock client with its default, pickles."""
    pool = await create_pool(RedisSettings.from_dsn(settings.redis.url))
    yield pool
    await pool.aclose(close_connection_pool=True)


@pytest_asyncio.fixture
async def make(settings: Settings, arq: ArqRedis) -> AsyncIterator[MakeWorker]:
    """Make workers without a database; closed at the end."""
    made: list[Worker] = []
    # A query to PostgreSQL would not be answered.
    nowhere = load_settings(
        environment={
            "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
            "REDIS_URL": settings.redis.url,
            "LONGHAUL_WORKER__LEASE_SECONDS": "0.6",
        }
    )

    def make_one(functions: Any = (add,), **arguments: Any) -> Worker:
        arguments = {"settings": nowhere, "burst": True, "handle_signals": False, "accept_pickle": True} | arguments
        worker = Worker(functions, **arguments)
        made.append(worker)
        return worker

    yield make_one
    gate["go"].set()
    for worker in made:
        await worker.close()


async def put(arq: ArqRedis, name: str, *args: Any, **options: Any) -> ArqJob:
    """Enqueue with the stock client."""
    sent = await arq.enqueue_job(name, *args, **options)
    assert sent is not None
    return sent


# --- enqueued by the stock client


async def test_a_stock_client_enqueues_and_reads_result_status_and_info(arq: ArqRedis, make: MakeWorker) -> None:
    sent = await put(arq, "add", 1, b=5)
    assert await sent.status() is JobStatus.queued
    worker = make()
    await worker.main()
    assert await sent.result(timeout=60) == 6
    assert await sent.status() is JobStatus.complete
    info = await sent.result_info()
    assert info is not None
    assert (info.function, info.args, info.kwargs, info.job_try) == ("add", (1,), {"b": 5}, 1)
    assert (info.success, info.queue_name, info.job_id) == (True, "arq:queue", sent.job_id)
    assert info.enqueue_time <= info.start_time <= info.finish_time
    assert (worker.jobs_complete, worker.jobs_failed, worker.jobs_retried) == (1, 0, 0)
    assert isinstance(worker, StockWorker)


async def test_values_that_only_a_pickle_can_carry_come_back(arq: ArqRedis, make: MakeWorker) -> None:
    async def echo(ctx: dict[Any, Any], value: Any) -> Any:
        return value

    values = {"at": datetime(2026, 1, 1, tzinfo=UTC), "set": {1, 2}, "raw": b"\x00\xff", 3: timedelta(1)}
    sent = await put(arq, "echo", values)
    await make([arq_func(echo, name="echo")]).main()
    assert await sent.result(timeout=60) == values


async def test_a_failure_is_raised_at_the_client_and_costs_one_try(arq: ArqRedis, make: MakeWorker) -> None:
    sent = await put(arq, "fail")
    worker = make([fail])
    await worker.main()
    with pytest.raises(ValueError, match="not today"):
        await sent.result(timeout=60)
    assert seen == [1]
    assert worker.jobs_failed == 1


class TwoWords(Exception):
    """An object that can be pickled, but not unpickled."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


async def test_an_error_that_no_pickle_can_bring_back_comes_as_text(arq: ArqRedis, make: MakeWorker) -> None:
    async def odd(ctx: dict[Any, Any]) -> None:
        raise TwoWords("no", "way")

    async def lock(ctx: dict[Any, Any]) -> Any:
        return lambda: None  # cannot be pickled

    failing = await put(arq, "odd")
    returning = await put(arq, "lock")
    worker = make([arq_func(odd, name="odd"), arq_func(lock, name="lock")])
    await worker.main()
    with pytest.raises(SerializationError, match="TwoWords: no way"):
        await failing.result(timeout=60)
    with pytest.raises(SerializationError, match="unable to serialize result"):
        await returning.result(timeout=60)


async def test_abort_ends_what_runs_waits_or_is_deferred(arq: ArqRedis, make: MakeWorker) -> None:
    worker = make([hang], burst=False, allow_abort_jobs=True)
    running = asyncio.create_task(worker.main())
    first = await put(arq, "hang")
    await until(lambda: asyncio.sleep(0, bool(seen)))
    assert await first.status() is JobStatus.in_progress
    assert await first.abort(timeout=60, poll_delay=0.02)
    deferred = await put(arq, "hang", _defer_by=60)
    assert await deferred.status() is JobStatus.deferred
    assert await deferred.abort(timeout=60, poll_delay=0.02)
    assert seen == [1]
    assert worker.jobs_failed == 2
    assert await arq.zcard(keys.ABORT) == 0
    await worker.close()
    await running


async def test_aborts_are_not_heeded_unless_they_are_allowed(arq: ArqRedis, make: MakeWorker) -> None:
    worker = make([hang], burst=False)
    running = asyncio.create_task(worker.main())
    sent = await put(arq, "hang")
    await until(lambda: asyncio.sleep(0, bool(seen)))
    with pytest.raises(asyncio.TimeoutError):
        await sent.abort(timeout=0.4, poll_delay=0.05)
    gate["go"].set()
    assert await sent.result(timeout=60, poll_delay=0.02) == "went"
    await worker.close()
    await running


async def test_the_options_of_enqueueing_keep_their_meaning(arq: ArqRedis, make: MakeWorker) -> None:
    one = await put(arq, "add", 1, _job_id="one")
    assert await arq.enqueue_job("add", 2, _job_id="one") is None
    elsewhere = await put(arq, "add", 3, _queue_name="other")
    began = time.time()
    by = await put(arq, "again", 0, _defer_by=0.4)
    until_then = await put(arq, "again", 0, _defer_until=datetime.now(UTC) + timedelta(seconds=0.5))
    third = await put(arq, "look", _job_try=3)
    await make([add, again, look]).main()  # by arq's rule, a burst waits for deferred jobs
    assert await one.result(timeout=60) == 3
    assert min(seen[1:]) - began >= 0.4
    assert await by.result(timeout=60) == await until_then.result(timeout=60) == 1
    assert (await third.result(timeout=60))["job_try"] == 3
    assert await elsewhere.status() is JobStatus.queued
    await make([add], queue_name="other").main()
    assert await elsewhere.result(timeout=60) == 5


async def test_what_has_expired_is_neither_begun_nor_tried_again(arq: ArqRedis, make: MakeWorker) -> None:
    waits = await put(arq, "add", 1, _expires=0.05)
    await asyncio.sleep(0.1)
    worker = make([add, again])
    await worker.main()
    with pytest.raises(JobExecutionFailed, match="job expired"):
        await waits.result(timeout=60)
    assert seen == []
    repeats = await put(arq, "again", 1, 0.4, _expires=0.2)
    await worker.main()
    with pytest.raises(JobExecutionFailed, match="job expired"):
        await repeats.result(timeout=60)
    assert len(seen) == 1


# --- rules of an attempt


async def test_retry_runs_again_after_its_time_and_up_to_max_tries(arq: ArqRedis, make: MakeWorker) -> None:
    good = await put(arq, "again", 2, 0.2)
    worker = make([again])
    await worker.main()
    assert await good.result(timeout=60) == 3
    assert all(later - before >= 0.2 for before, later in itertools.pairwise(seen))
    assert worker.jobs_retried == 2
    never = await put(arq, "again", 99)
    await make([again], max_tries=2).main()
    with pytest.raises(JobExecutionFailed, match="max 2 retries exceeded"):
        await never.result(timeout=60)
    assert len(seen) == 3 + 2


@pytest.mark.parametrize("error", [RetryJob(), OurRetry(after=0.0)], ids=["RetryJob", "ours"])
async def test_other_ways_to_ask_for_another_try(arq: ArqRedis, make: MakeWorker, error: Exception) -> None:
    async def ask(ctx: dict[Any, Any]) -> int:
        if ctx["job_try"] == 1:
            raise error
        return int(ctx["job_try"])

    sent = await put(arq, "ask")
    await make([arq_func(ask, name="ask")]).main()
    assert await sent.result(timeout=60) == 2


async def test_without_retry_jobs_a_retry_is_a_failure(arq: ArqRedis, make: MakeWorker) -> None:
    sent = await put(arq, "again", 1)
    await make([again], retry_jobs=False).main()
    with pytest.raises(Retry):
        await sent.result(timeout=60)
    assert len(seen) == 1


@pytest.mark.parametrize("way", ["worker", "function"])
async def test_job_timeout(arq: ArqRedis, make: MakeWorker, way: str) -> None:
    sent = await put(arq, "hang")
    worker = make([hang], job_timeout=0.1) if way == "worker" else make([arq_func(hang, timeout=0.1)])
    await worker.main()
    with pytest.raises(asyncio.TimeoutError):
        await sent.result(timeout=1)
    assert seen == [1]


async def test_a_function_that_does_not_end_is_given_up(arq: ArqRedis, make: MakeWorker, settings: Settings) -> None:
    quick = settings.model_copy(update={"worker": settings.worker.model_copy(update={"grace_period_seconds": 0.1})})
    sent = await arq.enqueue_job("deaf")
    worker = make([deaf, add], burst=True, job_timeout=0.1, max_jobs=1, settings=quick)
    await worker.main()
    with pytest.raises(TimeoutError):
        await sent.result(timeout=1)
    assert worker.jobs_failed == 1 and not seen
    gate["go"].set()
    await until(lambda: _seen("ended"))
    assert worker.jobs_failed == 1 and not worker.jobs_complete


async def _seen(what: str) -> bool:
    return what in seen


async def test_what_a_function_says_of_itself_wins(arq: ArqRedis, make: MakeWorker) -> None:
    named = arq_func(again, name="named", max_tries=1, keep_result=60)
    kept = arq_func(add, name="kept", keep_result_forever=True)
    tried, for_ever = await put(arq, "named", 5), await put(arq, "kept", 1)
    await make([named, kept]).main()
    with pytest.raises(JobExecutionFailed, match="max 1 retries exceeded"):
        await tried.result(timeout=60)
    assert await arq.ttl(keys.RESULT + for_ever.job_id) == -1


async def test_results_are_kept_as_long_as_the_worker_says(arq: ArqRedis, make: MakeWorker) -> None:
    for arguments, ttl in (
        ({}, 3600),
        ({"keep_result": timedelta(seconds=60)}, 60),
        ({"keep_result_forever": True}, -1),
        ({"keep_result": 0}, -2),
    ):
        sent = await put(arq, "add", 1)
        await make(**arguments).main()
        left = await arq.ttl(keys.RESULT + sent.job_id)
        assert ttl - 1 <= left <= ttl if ttl > 0 else left == ttl
        if ttl == -2:
            with pytest.raises(ResultNotFound):
                await sent.result(timeout=60)


async def test_an_unknown_function_and_a_payload_that_is_none_fail(arq: ArqRedis, make: MakeWorker) -> None:
    unknown = await put(arq, "nobody")
    await arq.set(keys.JOB + "broken", b"\x80broken")
    await arq.zadd("arq:queue", {"broken": 1})
    worker = make()
    await worker.main()
    with pytest.raises(JobExecutionFailed, match="function 'nobody' not found"):
        await unknown.result(timeout=60)
    with pytest.raises(DeserializationError):
        await ArqJob("broken", arq).result(timeout=60)
    assert worker.jobs_failed == 2
    assert await arq.hexists(keys.DEAD, "broken")


async def test_a_job_that_exits_fails_alone(arq: ArqRedis, make: MakeWorker) -> None:
    sent, other = await put(arq, "leave"), await put(arq, "add", 1)
    await make([leave, add]).main()
    with pytest.raises(JobExecutionFailed, match="SystemExit"):
        await sent.result(timeout=60)
    assert await other.result(timeout=60) == 3


# --- context and hooks


async def test_the_context_has_what_arq_puts_there(arq: ArqRedis, make: MakeWorker) -> None:
    async def startup(ctx: dict[Any, Any]) -> None:
        ctx["pool"] = "open"

    began = datetime.now(UTC)
    sent = await put(arq, "look", _job_id="x")
    await make([look], ctx={"mine": 1}, on_startup=startup).main()
    got = await sent.result(timeout=60)
    assert got["mine"] == 1
    assert got["pool"] == "open"
    assert (got["job_id"], got["job_try"]) == ("x", 1)
    assert abs(got["enqueue_time"] - began) < timedelta(seconds=5)
    assert abs(got["score"] / 1000 - began.timestamp()) < 5


async def test_hooks_come_in_arqs_order(arq: ArqRedis, make: MakeWorker) -> None:
    async def note(name: str, ctx: dict[Any, Any]) -> None:
        result = await ctx["redis"].exists(keys.RESULT + ctx["job_id"]) if "job_id" in ctx else None
        seen.append((name, result))

    names = ("on_startup", "on_job_start", "on_job_end", "after_job_end", "on_shutdown")

    def hook(name: str) -> Any:
        async def call(ctx: dict[Any, Any]) -> None:
            await note(name, ctx)

        return call

    async def body(ctx: dict[Any, Any]) -> None:
        await note("body", ctx)

    await put(arq, "body")
    worker = make([arq_func(body, name="body")], **{name: hook(name) for name in names})
    await worker.main()
    await worker.close()
    assert seen == [
        ("on_startup", None),
        ("on_job_start", 0),
        ("body", 0),
        ("on_job_end", 0),
        ("after_job_end", 1),
        ("on_shutdown", None),
    ]


async def test_an_error_of_a_hook_does_not_end_the_worker(
    arq: ArqRedis, make: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(ctx: dict[Any, Any]) -> None:
        raise KeyError("hook")

    sent = await put(arq, "add", 1)
    await make(on_job_start=broken).main()
    with pytest.raises(KeyError):
        await sent.result(timeout=60)
    other = await put(arq, "add", 1)
    await make(on_job_end=broken, after_job_end=broken).main()
    assert await other.result(timeout=60) == 3
    assert "on_job_end: KeyError" in caplog.text
    assert "after_job_end: KeyError" in caplog.text


async def test_log_results_can_be_turned_off(arq: ArqRedis, make: MakeWorker, caplog: pytest.LogCaptureFixture) -> None:
    async def secret(ctx: dict[Any, Any]) -> str:
        return "hush"

    with caplog.at_level(logging.INFO):
        for log_results in (True, False):
            await put(arq, "secret")
            await make([arq_func(secret, name="secret")], log_results=log_results).main()
    assert caplog.text.count("hush") == 1


# --- the worker as a whole


async def test_max_jobs_and_max_burst_jobs(arq: ArqRedis, make: MakeWorker) -> None:
    at_once: list[int] = []

    async def brief(ctx: dict[Any, Any]) -> None:
        seen.append(1)
        at_once.append(len(seen))
        await asyncio.sleep(0.02)
        seen.pop()

    for _ in range(9):
        await put(arq, "brief")
    functions = [arq_func(brief, name="brief")]
    assert await make(functions, max_burst_jobs=0).run_check() == 0
    assert await make(functions, max_jobs=3, max_burst_jobs=4).run_check() == 4
    assert await arq.zcard("arq:queue") == 5
    assert await make(functions, max_jobs=2).run_check(max_burst_jobs=1) == 1
    assert await make(functions, max_jobs=2).run_check() == 4
    assert max(at_once) == 3


async def test_run_check_tells_of_failures(arq: ArqRedis, make: MakeWorker) -> None:
    await put(arq, "fail")
    await put(arq, "add", 1)
    with pytest.raises(FailedJobs, match="1 job failed ValueError") as caught:
        await make([add, fail]).run_check()
    assert caught.value.count == 1
    await arq.flushall()
    await put(arq, "again", 1)
    with pytest.raises(FailedJobs):
        await make([again]).run_check(retry_jobs=False)


async def test_the_health_check_is_arqs(arq: ArqRedis, make: MakeWorker) -> None:
    await put(arq, "add", 1)
    worker = make(health_check_interval=60, health_check_key="alive")
    await worker.main()
    told = (await arq.get("alive")).decode()
    assert "j_complete=" in told
    assert "queued=" in told
    assert 0 < await arq.pttl("alive") <= 61_000
    await worker.close()
    assert await arq.exists("alive") == 0


async def test_a_signal_hands_running_jobs_back_at_no_cost(arq: ArqRedis, make: MakeWorker) -> None:
    sent = await put(arq, "hang")
    worker = make([hang], burst=False)
    stopped: list[Any] = []
    worker.on_stop = stopped.append
    running = asyncio.create_task(worker.async_run())
    await until(lambda: asyncio.sleep(0, bool(seen)))
    worker.handle_sig(15)  # type: ignore[arg-type]
    await running
    assert worker.jobs_retried == 1
    assert [sig.name for sig in stopped] == ["SIGTERM"]
    assert await sent.status() is JobStatus.queued
    await worker.close()
    gate["go"].set()
    await make([hang], max_tries=1).main()
    assert await sent.result(timeout=60) == "went"
    assert seen == [1, 1]


async def test_job_completion_wait_lets_jobs_end(arq: ArqRedis, make: MakeWorker) -> None:
    sent = await put(arq, "hang")
    worker = make([hang], burst=False, job_completion_wait=5)
    running = asyncio.create_task(worker.async_run())
    await until(lambda: asyncio.sleep(0, bool(seen)))
    worker.handle_sig_wait_for_completion(15)  # type: ignore[arg-type]
    waits = await put(arq, "hang")
    await round_trips(arq)
    gate["go"].set()
    await running
    assert await sent.result(timeout=60) == "went"
    assert await waits.status() is JobStatus.queued
    assert worker.jobs_retried == 0


async def test_without_retry_jobs_a_signal_fails_running_jobs(arq: ArqRedis, make: MakeWorker) -> None:
    sent = await put(arq, "hang")
    worker = make([hang], burst=False, retry_jobs=False)
    running = asyncio.create_task(worker.async_run())
    await until(lambda: asyncio.sleep(0, bool(seen)))
    await worker.close()
    await running
    with pytest.raises(asyncio.CancelledError):
        await sent.result(timeout=60)


async def test_a_cancelled_main_hands_its_jobs_back(arq: ArqRedis, make: MakeWorker) -> None:
    sent = await put(arq, "hang")
    worker = make([hang], burst=False)
    running = asyncio.create_task(worker.main())
    await until(lambda: asyncio.sleep(0, bool(seen)))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await sent.status() is JobStatus.queued


async def test_cron_jobs_run_at_startup_and_when_they_are_due_once_for_all_workers(
    arq: ArqRedis, make: MakeWorker
) -> None:
    async def due(ctx: dict[Any, Any]) -> None:
        seen.append((ctx["job_id"], ctx["score"]))

    async def first(ctx: dict[Any, Any]) -> None:
        seen.append("startup")

    # The workers of other processes have cron jobs of their own, with the same times.
    seconds = set(range(0, 60, 2))

    def jobs() -> list[Any]:
        return [
            cron(due, name="cron:due", second=seconds, microsecond=0),
            cron(first, name="cron:first", hour=3, run_at_startup=True),
        ]

    workers = [make([], cron_jobs=jobs(), burst=False) for _ in range(2)]
    running = [asyncio.create_task(worker.main()) for worker in workers]
    await until(lambda: asyncio.sleep(0, len([one for one in seen if one != "startup"]) >= 3))
    for worker in workers:
        await worker.close()
    await asyncio.gather(*running)
    ids = [one[0] for one in seen if one != "startup"]
    assert len(ids) == len(set(ids))
    assert seen.count("startup") in (1, 2)  # each worker asks for it; in the same millisecond by the same id
    assert all(one.startswith("cron:due:") for one in ids)
    # A late stock worker enqueues the same id, which exists already.
    assert await arq.enqueue_job("cron:due", _job_id=ids[0]) is None


async def test_serializers_of_ones_own_and_the_default_queue_of_a_pool(
    settings: Settings, arq: ArqRedis, make: MakeWorker
) -> None:
    def write(values: dict[str, Any]) -> bytes:
        return b"!" + json.dumps(values).encode()

    def read(raw: bytes) -> dict[str, Any]:
        assert raw[:1] == b"!"
        return dict(json.loads(raw[1:]))

    mine = await create_pool(
        RedisSettings.from_dsn(settings.redis.url),
        job_serializer=write,
        job_deserializer=read,
        default_queue_name="mine",
    )
    good, bad = await put(mine, "add", 1), await put(mine, "fail")
    worker = make([add, fail], queue_name=None, redis_pool=mine, job_serializer=write, job_deserializer=read)
    assert worker.queue_name == "mine"
    async with Client(
        settings.model_copy(update={"worker": settings.worker.model_copy(update={"queue": "mine"})})
    ) as c:
        ours = await c.enqueue("add", 40)
        await worker.main()
        assert await good.result(timeout=60) == 3
        with pytest.raises(SerializationError, match="ValueError: not today"):
            await bad.result(timeout=60)
        assert await ours.result(timeout=60) == 42  # JSON came, and JSON goes
    pickled = await put(arq, "add", 1, _queue_name="mine")
    await make(queue_name="mine", job_serializer=write, job_deserializer=read, accept_pickle=None).main()
    assert await arq.hexists(keys.DEAD, pickled.job_id)


async def test_pickles_are_refused_on_demand_and_warned_of_by_default(
    arq: ArqRedis, make: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return seen.append, ("sprung",)

    sent = await put(arq, "add", 1)
    await arq.set(keys.JOB + "trap", pickle.dumps({"f": "add", "a": (Trap(),), "k": {}, "t": None, "et": 1}))
    await arq.zadd("arq:queue", {"trap": 1})
    await make(accept_pickle=False).main()
    assert seen == []
    assert await arq.hexists(keys.DEAD, sent.job_id)
    assert "pickles from Redis are read" not in caplog.text
    other = await put(arq, "add", 1)
    await make(accept_pickle=None).main()
    assert await other.result(timeout=60) == 3
    assert "pickles from Redis are read" in caplog.text


async def test_operators_see_and_steer_arqs_jobs_too(arq: ArqRedis, make: MakeWorker) -> None:
    worker = make([hang, add], burst=False)
    running = asyncio.create_task(worker.main())
    sent = await put(arq, "hang", _job_id="seen")
    await until(lambda: arq.hget(keys.RUN + "seen", "state"))
    await arq.sadd(keys.CANCELLED, "seen")
    with pytest.raises(asyncio.CancelledError):
        await sent.result(timeout=60, poll_delay=0.02)
    await arq.sadd(keys.PAUSED, "add")
    paused = await put(arq, "add", 1)
    await round_trips(arq)
    assert seen == [1]
    await arq.srem(keys.PAUSED, "add")
    assert await paused.result(timeout=60, poll_delay=0.02) == 3
    await worker.close()
    await running


async def test_redis_that_does_not_answer_is_told_in_one_line() -> None:
    nobody = RedisSettings(port=1, conn_retries=0)
    worker = Worker([add], redis_settings=nobody, handle_signals=False)
    with pytest.raises(ServerUnavailable, match="Redis at localhost:1"):
        await worker.main()
    await worker.close()


async def test_expires_extra_ms_is_for_what_jobs_enqueue(arq: ArqRedis, make: MakeWorker) -> None:
    async def enqueue(ctx: dict[Any, Any]) -> None:
        await ctx["redis"].enqueue_job("later", _job_id="later", _defer_by=10)

    await put(arq, "enqueue")
    await make([arq_func(enqueue, name="enqueue")], expires_extra_ms=5_000, max_burst_jobs=1).main()
    assert 10_000 < await arq.pttl(keys.JOB + "later") <= 15_000


async def test_cron_jobs_are_due_in_the_workers_timezone(arq: ArqRedis, make: MakeWorker) -> None:
    zone = ZoneInfo("Asia/Kathmandu")  # 5:45 from UTC
    nightly = cron(add, name="nightly", hour=3, minute=0, timeout=1)
    await make([add], cron_jobs=[nightly], timezone=zone).main()
    assert nightly.next_run is not None
    assert (nightly.next_run.tzinfo, nightly.next_run.hour) == (zone, 3)
    assert nightly.next_run.astimezone(UTC).minute == 15


# --- what it takes


class WorkerSettings:
    """As arq documents it."""

    functions = (add, "tests.arq_compat.test_worker.fail")
    max_jobs = 3
    burst = True
    handle_signals = False
    unknown = "is left out"


def test_a_class_of_settings_is_taken_as_arq_takes_it(settings: Settings, event_loop_for_arq: None) -> None:
    assert set(get_kwargs(WorkerSettings)) == {"functions", "max_jobs", "burst", "handle_signals"}
    assert get_kwargs({"max_jobs": 2, "other": 1}) == {"max_jobs": 2}
    worker = create_worker(WorkerSettings, max_jobs=4)
    assert worker.max_jobs == 4
    assert set(worker.functions) == {"add", "tests.arq_compat.test_worker.fail"}
    ran = run_worker(WorkerSettings, redis_settings=RedisSettings.from_dsn(settings.redis.url))
    assert ran.jobs_complete == 0


@pytest.fixture
def event_loop_for_arq() -> Any:
    """An event loop for a worker that is created outside of one."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    loop.close()
    asyncio.set_event_loop(None)


async def test_arguments_that_cannot_be_are_refused(settings: Settings) -> None:
    with pytest.raises(RuntimeError, match="at least one function"):
        Worker(handle_signals=False)
    with pytest.raises(ValueError, match="If queue_name is absent"):
        Worker([add], queue_name=None, handle_signals=False)
    with pytest.raises(RuntimeError, match="must be instances of CronJob"):
        Worker([add], cron_jobs=[add], handle_signals=False)  # type: ignore[list-item]
    with pytest.raises(RuntimeError, match="is not a coroutine function"):
        Worker([print], handle_signals=False)  # type: ignore[list-item]
    with pytest.raises(RegistrationError, match="host is a list of Sentinels"):
        Worker([add], redis_settings=RedisSettings(host="a", sentinel=True), handle_signals=False)
    with pytest.raises(TypeError):
        Worker([add], maxjobs=1, handle_signals=False)  # type: ignore[call-arg]


async def test_a_project_without_ours_may_have_a_database_url_and_settings_of_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, settings: Settings
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.toml").write_text("[theirs]\nkey = 1\n")
    monkeypatch.setenv("DATABASE_URL", "mysql://somewhere/else")
    worker = Worker([add], redis_settings=RedisSettings.from_dsn(settings.redis.url), burst=True, handle_signals=False)
    await worker.main()
    await worker.close()


@pytest.mark.parametrize(
    ("given", "url"),
    [
        (RedisSettings(), "redis://localhost:6379/0"),
        (RedisSettings(host="h", port=1, database=3, username="u", password="p@:/"), "redis://u:p%40%3A%2F@h:1/3"),
        (RedisSettings(password="p"), "redis://:p@localhost:6379/0"),
        (RedisSettings(unix_socket_path="/run/r.sock", database=2), "unix:///run/r.sock?db=2"),
        (
            RedisSettings(ssl=True, ssl_ca_certs="/ca.pem"),
            "rediss://localhost:6379/0?ssl_cert_reqs=required&ssl_ca_certs=%2Fca.pem&ssl_check_hostname=False",
        ),
        (
            RedisSettings(host=[("a", 1), ("::1", 2)], sentinel=True, sentinel_master="it", password="p", database=3),
            "redis+sentinel://:p@a:1,[::1]:2/it/3",
        ),
    ],
    ids=["default", "all", "password", "unix", "tls", "sentinel"],
)
async def test_redis_settings_lead_to_the_same_server(given: RedisSettings, url: str) -> None:
    worker = Worker([add], redis_settings=given, handle_signals=False)
    assert worker._settings_in_force().redis.url == url


async def test_a_pool_by_sentinels_leads_to_the_same_primary() -> None:
    sentinel = Sentinel([("a", 1), ("b", 2)], sentinel_kwargs={"password": "s"}, password="p", db=3)
    pool: Any = sentinel.master_for("it", redis_class=ArqRedis)
    worker = Worker([add], redis_pool=pool, handle_signals=False)
    assert worker._settings_in_force().redis.url == "redis+sentinel://:p@a:1,b:2/it/3?sentinel_password=s"


# --- our own jobs in the same worker


@job
async def greet(ctx: JobContext, name: str, at: datetime) -> str:
    """Greet."""
    async with ctx.session():
        return f"{name} {at:%Y}"


@job(max_attempts=1)
async def refuse(ctx: JobContext) -> None:
    """Fail."""
    raise ValueError("no")


async def test_our_own_jobs_run_beside_arqs_with_hooks_and_counts(
    arq: ArqRedis, make: MakeWorker, settings: Settings, database: Database
) -> None:
    async def note(ctx: dict[Any, Any]) -> None:
        seen.append(ctx["job_id"])

    sent = await put(arq, "greet", "Ada", at=datetime(2026, 1, 1, tzinfo=UTC), _job_id="ours")
    bad, theirs = await put(arq, "refuse", _job_id="bad"), await put(arq, "add", 1, _job_id="theirs")
    worker = make([greet, refuse, add], settings=settings, on_job_start=note, after_job_end=note)
    await worker.main()
    assert await sent.result(timeout=60) == "Ada 2026"
    with pytest.raises(JobExecutionFailed, match="ValueError: no"):
        await bad.result(timeout=60)
    assert await theirs.result(timeout=60) == 3
    assert (worker.jobs_complete, worker.jobs_failed) == (2, 1)
    assert sorted(seen) == ["bad", "bad", "ours", "ours", "theirs", "theirs", "theirs"]


@job(once=True)
async def migrate(ctx: JobContext) -> int:
    """Change each row once, by two hands."""
    async for batch in ctx.chunks(select(Target), size=10, parallel=2):
        for target in batch:
            target.touched = True
        seen.append(str(ctx.is_helper))
        await asyncio.sleep(0.01)
    return ctx.rows_done


@job(verify=select(Target.id).where(~Target.touched))
async def leave_rows(ctx: JobContext) -> None:
    """Leave rows undone."""


async def test_jobs_of_ours_keep_their_rules_for_verify_once_and_parallel(
    arq: ArqRedis, make: MakeWorker, settings: Settings, database: Database
) -> None:
    await fill_targets(database, 200)
    left = await put(arq, "leave_rows", _job_id="left")
    worker = make([migrate, leave_rows], settings=settings)
    await worker.main()
    with pytest.raises(JobExecutionFailed, match="incomplete: 200 rows are left undone: 1, 2"):
        await left.result(timeout=60)
    assert (worker.jobs_complete, worker.jobs_failed) == (0, 1)
    misnamed = await put(arq, "migrate", _job_id="another")
    first = await put(arq, "migrate", _job_id="migrate")
    await make([migrate], settings=settings).main()
    with pytest.raises(JobExecutionFailed, match="migrate is a data migration: enqueue it with its name as id"):
        await misnamed.result(timeout=60)
    assert await first.result(timeout=60) == 200
    assert set(seen) == {"True", "False"}
    await arq.delete(keys.RESULT + "migrate")
    again = await put(arq, "migrate", _job_id="migrate")
    await make([migrate], settings=settings).main()
    assert await again.result(timeout=60) == 200
    assert await effects(database) == {1: 200}


async def test_a_job_of_ours_without_a_database_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "LONGHAUL_DATABASE__URL", "LONGHAUL_SETTINGS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RegistrationError, match="needs PostgreSQL: set DATABASE_URL"):
        Worker([greet, add], handle_signals=False)


async def test_keep_result_of_a_function_holds_in_each_way_to_fail(arq: ArqRedis, make: MakeWorker) -> None:
    async def boom(ctx: dict[Any, Any]) -> None:
        raise ValueError("no")

    async def retry_for_ever(ctx: dict[Any, Any]) -> None:
        raise ArqRetry(defer=0.01)

    functions = [
        arq_func(boom, keep_result=0, name="boom"),
        arq_func(retry_for_ever, keep_result=0, max_tries=2, name="again"),
    ]
    await arq.enqueue_job("boom", _job_id="boom")
    await arq.enqueue_job("again", _job_id="again")
    await make(functions).main()
    assert await arq.exists(keys.RESULT + "boom", keys.RESULT + "again") == 0
    assert await arq.enqueue_job("again", _job_id="again") is not None


async def test_the_log_has_arqs_own_words(arq: ArqRedis, make: MakeWorker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    async def good(ctx: dict[Any, Any], name: str) -> str:
        return name

    async def bad(ctx: dict[Any, Any]) -> None:
        raise ValueError("no")

    async def again(ctx: dict[Any, Any]) -> None:
        raise ArqRetry(defer=0.01)

    async def odd(ctx: dict[Any, Any]) -> Any:
        return object.__new__(type("Local", (), {}))

    for name, arguments in (("good", ("x",)), ("bad", ()), ("again", ()), ("odd", ()), ("unknown", ())):
        await arq.enqueue_job(name, *arguments, _job_id=f"id-{name}")
    await arq.set(keys.JOB + "id-junk", b"\x80junk")
    await arq.zadd("arq:queue", {"id-junk": 1, "id-gone": 1})
    functions = [
        arq_func(good, name="good"),
        arq_func(bad, name="bad"),
        arq_func(again, name="again", max_tries=1),
        arq_func(odd, name="odd"),
    ]
    await make(functions).main()
    for words in (
        r"\d\.\d\ds → id-good:good\('x'\)",
        r"\d\.\d\ds ← id-good:good ● 'x'",
        r"\d\.\d\ds ! id-bad:bad failed, ValueError: no",
        r"\d\.\d\ds ↻ id-again:again retrying job in 0\.01s",
        r"\d\.\d\ds ! id-again:again max retries 1 exceeded",
        r"job id-unknown, function 'unknown' not found",
        r"deserializing job id-junk failed",
        r"job id-gone expired",
        r"error serializing result of id-odd:odd",
    ):
        assert re.search(words, caplog.text), words
    lines = [record for record in caplog.records if record.levelno >= logging.INFO]
    assert {record.name for record in lines} == {"arq.worker"}
    assert "Starting worker for 4 functions: good, bad, again, odd" in caplog.text
    junk = await ArqJob("id-junk", arq).result_info()
    assert junk is not None
    assert repr(junk.result) == "DeserializationError('unable to deserialize job')"


async def test_a_stop_that_waits_is_logged_as_by_arq(
    arq: ArqRedis, make: MakeWorker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    stopped: list[Any] = []

    async def quick(ctx: dict[Any, Any]) -> None:
        await gate["go"].wait()

    await arq.enqueue_job("quick", _job_id="quick")
    worker = make([arq_func(quick, name="quick")], burst=False, job_completion_wait=60)
    worker.on_stop = stopped.append
    running = asyncio.create_task(worker.main())
    await until(lambda: _has_tasks(worker, 1))
    worker.handle_sig_wait_for_completion(signal.SIGTERM)
    assert (worker.allow_pick_jobs, stopped) == (False, [])
    gate["go"].set()
    await running
    await until(lambda: _is_in(caplog, "wait complete"))
    assert stopped == [signal.SIGTERM]
    told = [record.message for record in caplog.records if "shutdown" in record.message]
    assert told == [
        "shutdown on SIGTERM ◆ 0 jobs complete ◆ 0 failed ◆ 0 retries ◆ 1 to be completed",
        "shutdown on SIGTERM, wait complete ◆ 1 jobs complete ◆ 0 failed ◆ 0 retries ◆ 0 ongoing to cancel",
    ]


async def _has_tasks(worker: Worker, count: int) -> bool:
    return len(worker.tasks) == count


async def _is_in(caplog: pytest.LogCaptureFixture, words: str) -> bool:
    return words in caplog.text


async def test_run_cron_may_be_overridden_and_the_claim_of_a_cron_job_is_kept(arq: ArqRedis, make: MakeWorker) -> None:
    looks: list[datetime] = []

    async def good(ctx: dict[Any, Any]) -> None:
        pass

    worker = make(cron_jobs=[cron(good, name="cron", hour=1, run_at_startup=True)])
    run_cron = worker.run_cron

    async def note(now: datetime, delay: float, num_windows: int = 2) -> None:
        looks.append(now)
        await run_cron(now, delay, num_windows)

    worker.run_cron = note  # type: ignore[method-assign]
    await worker.main()
    assert worker.jobs_complete == 1
    assert looks[0].tzinfo is not None
    [claim] = await arq.keys(keys.IN_PROGRESS + "*")
    assert 0 < await arq.ttl(claim) <= 60


def test_the_signature_is_arqs_with_what_is_ours_behind_it() -> None:
    stock, ours = inspect.signature(StockWorker).parameters, inspect.signature(Worker).parameters
    assert list(ours) == [*stock, "settings", "accept_pickle", "mirror"]
    assert [ours[name].default for name in stock] == [one.default for one in stock.values()]


async def test_the_health_check_is_there_before_the_first_job(arq: ArqRedis, make: MakeWorker) -> None:
    found: list[Any] = []

    async def look(ctx: dict[Any, Any]) -> None:
        found.append(await ctx["redis"].get("arq:queue:health-check"))

    await arq.enqueue_job("look")
    await make([arq_func(look, name="look")]).main()
    assert b"j_complete=0 j_failed=0 j_retried=0 j_ongoing=0 queued=1" in found[0]


async def test_without_a_mirror_all_keys_are_arqs(arq: ArqRedis, make: MakeWorker) -> None:
    async def good(ctx: dict[Any, Any]) -> None:
        pass

    async def outlasts_cron(ctx: dict[Any, Any]) -> None:
        await until(lambda: arq.keys("arq:result:cron:*"))

    await arq.enqueue_job("outlasts_cron")
    await arq.set(keys.JOB + "junk", b"\x80junk")
    await arq.zadd("arq:queue", {"junk": 1})
    lines = [cron(good, name="cron", second=set(range(60)), unique=True)]
    functions = [arq_func(outlasts_cron, name="outlasts_cron")]
    await make(functions, mirror=False, cron_jobs=lines).main()
    assert [name for name in await arq.keys("*") if not name.startswith(b"arq:")] == []
    assert await arq.keys("arq:result:cron:*")
