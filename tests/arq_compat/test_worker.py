"""`Worker` with arq's arguments implements arq's documentation of each; a stock arq client enqueues and reads."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import pickle
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from arq import create_pool, cron
from arq import func as arq_func
from arq.connections import ArqRedis, RedisSettings
from arq.jobs import JobStatus, SerializationError
from arq.worker import FailedJobs
from arq.worker import Worker as StockWorker

from tests.arq_compat.functions import MakeWorker, add, again, fail, gate, hang, look, put, seen
from tests.support.waiting import round_trips, until
from worker import Client, ServerUnavailable, Settings
from worker.arq_compat import Worker
from worker.queue import keys


def hour_far_from_now() -> int:
    """Return an hour of UTC's day in which no cron job is due while the test runs (arq's `minute=None` is each)."""
    return (datetime.now(UTC).hour + 12) % 24


async def test_the_context_has_what_arq_puts_there(arq: ArqRedis, make: MakeWorker) -> None:
    async def startup(ctx: dict[Any, Any]) -> None:
        ctx["pool"] = "open"

    began = datetime.now(UTC)
    sent = await put(arq, "look", _job_id="x")
    await make([look], ctx={"mine": 1}, on_startup=startup).main()
    got = await sent.result(timeout=120)
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
        await sent.result(timeout=120)
    other = await put(arq, "add", 1)
    await make(on_job_end=broken, after_job_end=broken).main()
    assert await other.result(timeout=120) == 3
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
    assert await sent.result(timeout=120) == "went"
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
    assert await sent.result(timeout=120) == "went"
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
        await sent.result(timeout=120)


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
            cron(first, name="cron:first", hour=hour_far_from_now(), run_at_startup=True),
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
        assert await good.result(timeout=120) == 3
        with pytest.raises(SerializationError, match="ValueError: not today"):
            await bad.result(timeout=120)
        assert await ours.result(timeout=120) == 42  # JSON came, and JSON goes
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
    assert await other.result(timeout=120) == 3
    assert "pickles from Redis are read" in caplog.text


async def test_operators_see_and_steer_arqs_jobs_too(arq: ArqRedis, make: MakeWorker) -> None:
    worker = make([hang, add], burst=False)
    running = asyncio.create_task(worker.main())
    sent = await put(arq, "hang", _job_id="seen")
    await until(lambda: arq.hget(keys.RUN + "seen", "state"))
    await arq.sadd(keys.CANCELLED, "seen")
    with pytest.raises(asyncio.CancelledError):
        await sent.result(timeout=120, poll_delay=0.02)
    await arq.sadd(keys.PAUSED, "add")
    paused = await put(arq, "add", 1)
    await round_trips(arq)
    assert seen == [1]
    await arq.srem(keys.PAUSED, "add")
    assert await paused.result(timeout=120, poll_delay=0.02) == 3
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


async def test_run_cron_may_be_overridden_and_the_claim_of_a_cron_job_is_kept(arq: ArqRedis, make: MakeWorker) -> None:
    looks: list[datetime] = []

    async def good(ctx: dict[Any, Any]) -> None:
        pass

    worker = make(cron_jobs=[cron(good, name="cron", hour=hour_far_from_now(), run_at_startup=True)])
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
