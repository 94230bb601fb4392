"""Rules of an attempt in the facade: retries, timeouts, results and failures."""

from __future__ import annotations

import asyncio
import itertools
from datetime import timedelta
from typing import Any

import pytest
from arq import Retry as ArqRetry
from arq import func as arq_func
from arq.connections import ArqRedis
from arq.jobs import DeserializationError, ResultNotFound
from arq.jobs import Job as ArqJob
from arq.worker import JobExecutionFailed, Retry, RetryJob

from tests.arq_compat.functions import MakeWorker, add, again, deaf, gate, hang, leave, put, seen
from tests.support.waiting import until
from worker import Retry as OurRetry
from worker import Settings
from worker.queue import keys


async def test_retry_runs_again_after_its_time_and_up_to_max_tries(arq: ArqRedis, make: MakeWorker) -> None:
    good = await put(arq, "again", 2, 0.2)
    worker = make([again])
    await worker.main()
    assert await good.result(timeout=120) == 3
    assert all(later - before >= 0.2 for before, later in itertools.pairwise(seen))
    assert worker.jobs_retried == 2
    never = await put(arq, "again", 99)
    await make([again], max_tries=2).main()
    with pytest.raises(JobExecutionFailed, match="max 2 retries exceeded"):
        await never.result(timeout=120)
    assert len(seen) == 3 + 2


@pytest.mark.parametrize("error", [RetryJob(), OurRetry(after=0.0)], ids=["RetryJob", "ours"])
async def test_other_ways_to_ask_for_another_try(arq: ArqRedis, make: MakeWorker, error: Exception) -> None:
    async def ask(ctx: dict[Any, Any]) -> int:
        if ctx["job_try"] == 1:
            raise error
        return int(ctx["job_try"])

    sent = await put(arq, "ask")
    await make([arq_func(ask, name="ask")]).main()
    assert await sent.result(timeout=120) == 2


async def test_without_retry_jobs_a_retry_is_a_failure(arq: ArqRedis, make: MakeWorker) -> None:
    sent = await put(arq, "again", 1)
    await make([again], retry_jobs=False).main()
    with pytest.raises(Retry):
        await sent.result(timeout=120)
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
        await tried.result(timeout=120)
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
                await sent.result(timeout=120)


async def test_an_unknown_function_and_a_payload_that_is_none_fail(arq: ArqRedis, make: MakeWorker) -> None:
    unknown = await put(arq, "nobody")
    await arq.set(keys.JOB + "broken", b"\x80broken")
    await arq.zadd("arq:queue", {"broken": 1})
    worker = make()
    await worker.main()
    with pytest.raises(JobExecutionFailed, match="function 'nobody' not found"):
        await unknown.result(timeout=120)
    with pytest.raises(DeserializationError):
        await ArqJob("broken", arq).result(timeout=120)
    assert worker.jobs_failed == 2
    assert await arq.hexists(keys.DEAD, "broken")


async def test_a_job_that_exits_fails_alone(arq: ArqRedis, make: MakeWorker) -> None:
    sent, other = await put(arq, "leave"), await put(arq, "add", 1)
    await make([leave, add]).main()
    with pytest.raises(JobExecutionFailed, match="SystemExit"):
        await sent.result(timeout=120)
    assert await other.result(timeout=120) == 3


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


class ExtraRaises(Exception):
    """arq logs what `extra()` of an error returns."""

    def extra(self) -> None:
        """Fail."""
        raise KeyError("extra")


class ExtraCannotBeRead(Exception):
    """An error with a broken attribute."""

    @property
    def extra(self) -> None:
        """Fail."""
        raise KeyError("extra")


class TextRaises(Exception):
    """An error without a message."""

    def __str__(self) -> str:
        raise KeyError("text")


@pytest.mark.parametrize(
    ("raised", "stored"), [(ExtraRaises, KeyError), (ExtraCannotBeRead, KeyError), (TextRaises, TextRaises)]
)
async def test_an_error_that_cannot_be_described_ends_its_job_at_its_first_attempt(
    arq: ArqRedis, make: MakeWorker, raised: type[Exception], stored: type[Exception]
) -> None:
    async def odd(ctx: dict[Any, Any]) -> None:
        seen.append(ctx["job_try"])
        raise raised

    async def ended(ctx: dict[Any, Any]) -> None:
        seen.append("ended")

    sent = await put(arq, "odd")
    worker = make([arq_func(odd, name="odd")], after_job_end=ended)
    await worker.main()
    with pytest.raises(stored):
        await sent.result(timeout=120)
    assert seen == [1, "ended"] and worker.jobs_failed == 1
    assert await arq.hget(keys.RUN + sent.job_id, "state") == b"dead"
