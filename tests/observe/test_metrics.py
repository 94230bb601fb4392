"""The metrics of a worker, scraped after real jobs."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest
from redis.asyncio import Redis
from sqlalchemy import select

from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.scrapes import check_by_promtool, parse, scrape, served_at, with_metrics
from tests.support.waiting import until, until_status, until_true
from worker import Client, JobContext, NonRetryableError, Settings, Snooze, job
from worker.batch.throttles import make_throttles
from worker.cancellation import cancel_and_wait
from worker.errors import SettingsError
from worker.launch import running
from worker.observe.metrics import definitions as names
from worker.observe.metrics.endpoint import make_endpoint
from worker.observe.metrics.observer import Metrics
from worker.runtime.observer import RunInfo
from worker.runtime.worker import Worker
from worker.settings import ThrottleSettings
from worker.throttles import RowsPerSecond
from worker.types import Database

Scrape = Callable[[], Awaitable[dict[tuple[str, ...], float]]]


@job
async def walk(ctx: JobContext) -> int:
    """Walk in batches of ten; two rows fail."""
    loop = ctx.chunks(select(Author), size=10, on_error="quarantine", quarantine_limit=5, name="authors")
    async for batch in loop:
        for author in batch:
            if author.id in (7, 23):
                raise ValueError(f"author {author.id} is bad")
            author.seen += 1
    return ctx.rows_done


@job(throttle=[RowsPerSecond(400)])
async def slow_walk(ctx: JobContext) -> None:
    """Walk under a pace."""
    async for _ in ctx.chunks(select(Author.id), size=20, lock=False):
        pass


@job
async def retried(ctx: JobContext) -> None:
    """Fail once."""
    if ctx.attempt == 1:
        raise ValueError("hunter2 is no label")


@job
async def hopeless(ctx: JobContext) -> None:
    """Fail for good."""
    raise NonRetryableError("no")


@job
async def sleepy(ctx: JobContext) -> None:
    """Snooze for an hour."""
    raise Snooze(3600)


@job
async def waits(ctx: JobContext) -> None:
    """Run until it is cancelled."""
    await asyncio.Event().wait()


@job(cron="* * * * * *")
async def ticking(ctx: JobContext) -> None:
    """Run each second."""


@pytest.fixture
async def worker(
    fast: Settings, database: Database, client: Client, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[tuple[Worker, Scrape]]:
    """A worker with metrics, and its scrape."""
    caplog.set_level(logging.INFO, logger="longhaul.metrics")
    jobs = [walk, slow_walk, retried, hopeless, sleepy, waits, ticking]
    async with running(with_metrics(fast), jobs=jobs) as started:
        url = await served_at(lambda: caplog.text)

        async def read() -> dict[tuple[str, ...], float]:
            text = await scrape(url)
            return parse(text)

        read.url = url  # type: ignore[attr-defined]
        yield started, read


async def test_a_scrape_has_what_the_jobs_have_done(
    worker: tuple[Worker, Scrape], client: Client, redis: Redis, database: Database
) -> None:
    _, read = worker
    await fill_authors(database, 40)
    run = await client.enqueue(walk)
    assert await run.result(timeout=60) == 38
    await (await client.enqueue(slow_walk)).result(timeout=60)
    await (await client.enqueue(retried)).result(timeout=60)
    await until_status(await client.enqueue(hopeless), "dead")
    await until_status(await client.enqueue(sleepy), "deferred")
    now = datetime.now(UTC)
    # Nothing that Redis holds makes a series: neither the name of a job nor the id of a run.
    await redis.set("arq:job:evil", '{"f": "evil\\"} 1\\nbad", "k": {}}')
    await redis.zadd("arq:queue", {"evil": 0})
    await redis.set("arq:job:worse", b"\xff\x00")
    await redis.zadd("arq:queue", {"worse": 0})
    await redis.zadd("arq:queue", {"later": (now + timedelta(days=400)).timestamp() * 1000})

    async def is_complete() -> dict[tuple[str, ...], float]:
        found = await read()
        is_read = found["longhaul_dead_letters",] == 2 and found["longhaul_queue_entries", "arq:queue"] >= 3
        has_ticked = "longhaul_last_success_timestamp_seconds", "ticking"
        return found if is_read and has_ticked in found else {}

    found = await until(is_complete, 30)
    jobs = {labels[1:]: value for labels, value in found.items() if labels[0] == "longhaul_jobs_total" and value}
    ticks = jobs.pop(("ticking", "succeeded"))
    assert found["longhaul_cron_lateness_seconds_count", "ticking"] >= ticks >= 1
    assert jobs == {
        ("walk", "succeeded"): 1,
        ("slow_walk", "succeeded"): 1,
        ("retried", "failed"): 1,
        ("retried", "succeeded"): 1,
        ("hopeless", "dead"): 1,
        ("sleepy", "snoozed"): 1,
        ("other", "dead"): 1,  # the payload that cannot be read
    }
    assert found["longhaul_attempts_total", "retried"] == 2
    assert found["longhaul_attempt_duration_seconds_count", "retried"] == 2
    assert found["longhaul_queue_latency_seconds_count", "walk", "arq:queue"] == 1
    assert found["longhaul_queue_latency_seconds_sum", "walk", "arq:queue"] < 60
    assert found["longhaul_rows_total", "walk", "authors"] == 38
    assert found["longhaul_quarantined_rows_total", "walk", "authors"] == 2
    batches = found["longhaul_batches_total", "walk", "authors"]
    assert batches == found["longhaul_batch_duration_seconds_count", "walk"] >= 5
    assert found["longhaul_throttled_seconds_total", "slow_walk", "pace"] > 0
    assert abs(found["longhaul_last_success_timestamp_seconds", "ticking"] - now.timestamp()) < 300
    assert found["longhaul_server_up", "redis"] == found["longhaul_server_up", "postgresql"] == 1
    assert found["longhaul_slots",] == 10
    assert found["longhaul_outbox_rows",] == 0
    text = await scrape(read.url)  # type: ignore[attr-defined]
    assert not [word for word in ("evil", "hunter2", run.id) if word in text]
    await check_by_promtool(text)


async def test_runs_that_change_their_worker_are_counted(
    worker: tuple[Worker, Scrape], client: Client, redis: Redis
) -> None:
    _, read = worker
    stolen = await client.enqueue(waits)

    async def is_running() -> bool:
        return await redis.exists(f"arq:in-progress:{stolen.id}") == 1

    await until(is_running)
    await redis.set(f"arq:in-progress:{stolen.id}", "another:1")
    # The traces of a worker that died in its first attempt: the number of the attempt, and the end of its lease.
    await redis.set("arq:job:orphan", '{"f": "retried", "k": {}}')
    await redis.set("arq:retry:orphan", 1)
    await redis.zadd("arq:queue", {"orphan": 1_700_000_000_000.5})

    async def are_counted() -> bool:
        found = await read()
        lost = found.get(("longhaul_jobs_total", "waits", "lost"))
        return lost == 1 and found["longhaul_jobs_total", "retried", "succeeded"] == 1

    await until(are_counted, 60)
    found = await read()
    assert found["longhaul_leases_lost_total", "waits"] == 1
    assert found["longhaul_takeovers_total", "retried"] == found["longhaul_attempts_total", "retried"] == 1
    assert ("longhaul_queue_latency_seconds_count", "retried", "arq:queue") not in found
    await redis.delete(f"arq:job:{stolen.id}", f"arq:in-progress:{stolen.id}")


def test_series_are_bounded() -> None:
    metrics = Metrics([f"job {n}" for n in range(500)], [f"queue {n}" for n in range(50)])
    for n in range(2_000):
        run = RunInfo(f"run {n}", f"job {n}", f"queue {n}", 1, 1, took_over=n % 2 == 0)
        metrics.started(run)
        metrics.throttled(run, f"reason {n}", since=datetime.now(UTC), until=None, kind=f"kind {n}")
        metrics._jobs["job 0"].step(f"step {n}")[0] += 1
        metrics.ended(run, f"state {n}")
        metrics.cron_fired(f"job {n}", run_id=run.run_id, late_seconds=1)
    assert metrics.running == 0
    found = metrics.snapshot()
    jobs = {labels[0] for values in found.values() for labels in values}
    assert len(jobs) == names.MOST_JOBS + 1
    assert names.OTHER in jobs
    assert len({labels[1] for labels in found["longhaul_rows_total"]}) == names.MOST_STEPS + 1
    assert {labels[1] for labels in found["longhaul_throttled_seconds_total"]} == {names.APPLICATION}
    assert {labels[1] for labels in found["longhaul_jobs_total"]} <= set(names.OUTCOMES)
    queues = {labels[1] for labels in found["longhaul_queue_latency_seconds"]}
    assert len(queues) <= names.MOST_QUEUES + 1
    assert sum(map(len, found.values())) < 25 * (names.MOST_JOBS + names.MOST_STEPS)


def test_without_the_package_a_port_is_an_error_that_names_the_extra(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert make_endpoint(settings, []) is None
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(SettingsError, match=r"pip install 'longhaul-worker\[metrics\]'"):
        make_endpoint(with_metrics(settings), [])


@pytest.mark.parametrize("by", ["run", "snapshot"])
async def test_attempts_that_never_report_their_end_are_forgotten(by: str) -> None:
    metrics = Metrics(["walk"], ["arq:queue"])
    for n in range(10_500):
        metrics.started(RunInfo(f"run {n}", "walk", "arq:queue", 1, 0))
    assert metrics.running == 10_500
    if by == "snapshot":
        metrics.snapshot()
    else:
        tidying = asyncio.create_task(metrics.run())
        await until_true(lambda: metrics.running < 10_500)
        await cancel_and_wait(tidying)
    assert metrics.running == 10_000


def test_each_built_in_throttle_has_a_reason_of_its_own() -> None:
    rules = ThrottleSettings.model_validate(
        {
            "max_replication_lag_seconds": 1,
            "max_active_sessions": 1,
            "max_lock_waiters": 1,
            "max_dead_row_ratio": 0.1,
            "wait_for_vacuum": True,
            "min_free_connections": 3,
        }
    )
    kinds = {throttle._kind for throttle in make_throttles(rules)}  # type: ignore[attr-defined]
    assert len(kinds) == 7
    assert kinds <= names.REASONS.keys()
