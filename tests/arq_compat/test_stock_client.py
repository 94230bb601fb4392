"""A stock arq client enqueues, reads and aborts jobs of the facade."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from arq import func as arq_func
from arq.connections import ArqRedis
from arq.jobs import JobStatus, SerializationError
from arq.worker import JobExecutionFailed
from arq.worker import Worker as StockWorker

from tests.arq_compat.functions import MakeWorker, add, again, fail, gate, hang, look, put, seen
from tests.support.waiting import until
from worker.queue import keys


async def test_a_stock_client_enqueues_and_reads_result_status_and_info(arq: ArqRedis, make: MakeWorker) -> None:
    sent = await put(arq, "add", 1, b=5)
    assert await sent.status() is JobStatus.queued
    worker = make()
    await worker.main()
    assert await sent.result(timeout=120) == 6
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
    assert await sent.result(timeout=120) == values


async def test_a_failure_is_raised_at_the_client_and_costs_one_try(arq: ArqRedis, make: MakeWorker) -> None:
    sent = await put(arq, "fail")
    worker = make([fail])
    await worker.main()
    with pytest.raises(ValueError, match="not today"):
        await sent.result(timeout=120)
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
        await failing.result(timeout=120)
    with pytest.raises(SerializationError, match="unable to serialize result"):
        await returning.result(timeout=120)


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
    assert await sent.result(timeout=120, poll_delay=0.02) == "went"
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
    assert await one.result(timeout=120) == 3
    assert min(seen[1:]) - began >= 0.4
    assert await by.result(timeout=120) == await until_then.result(timeout=120) == 1
    assert (await third.result(timeout=120))["job_try"] == 3
    assert await elsewhere.status() is JobStatus.queued
    await make([add], queue_name="other").main()
    assert await elsewhere.result(timeout=120) == 5


async def test_what_has_expired_is_neither_begun_nor_tried_again(arq: ArqRedis, make: MakeWorker) -> None:
    waits = await put(arq, "add", 1, _expires=0.05)
    await asyncio.sleep(0.1)
    worker = make([add, again])
    await worker.main()
    with pytest.raises(JobExecutionFailed, match="job expired"):
        await waits.result(timeout=120)
    assert seen == []
    repeats = await put(arq, "again", 1, 0.4, _expires=0.2)
    await worker.main()
    with pytest.raises(JobExecutionFailed, match="job expired"):
        await repeats.result(timeout=120)
    assert len(seen) == 1
