"""The log of the facade has arq's own words."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
from typing import Any

import pytest
from arq import Retry as ArqRetry
from arq import func as arq_func
from arq.connections import ArqRedis
from arq.jobs import Job as ArqJob

from tests.arq_compat.functions import MakeWorker, gate
from tests.support.waiting import until
from worker.arq_compat import Worker
from worker.queue import keys


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
    # asyncio reports a connection that an earlier test has left.
    lines = [record for record in caplog.records if record.levelno >= logging.INFO and record.name != "asyncio"]
    assert {record.name for record in lines} == {"arq.worker"}
    assert "Starting worker for 4 functions: good, bad, again, odd" in caplog.text
    junk = await ArqJob("id-junk", arq).result_info()
    assert junk is not None
    assert repr(junk.result) == "DeserializationError('unable to deserialize job')"


@pytest.mark.parametrize("allowed", [True, False])
async def test_the_log_begins_with_the_server_and_ends_with_the_counts(
    arq: ArqRedis, make: MakeWorker, caplog: pytest.LogCaptureFixture, allowed: bool
) -> None:
    caplog.set_level(logging.INFO, logger="arq.worker")
    await arq.enqueue_job("add", 1)
    worker = make()
    worker._pool = pool = await worker._connect()
    if not allowed:
        await arq.execute_command("ACL", "SETUSER", "plain", "on", "nopass", "~*", "&*", "+@all", "-info")
        await pool.execute_command("AUTH", "plain", "")
    await worker.main()
    await worker.close()
    await arq.execute_command("ACL", "DELUSER", "plain")
    assert (" mem_usage=" in caplog.text) is allowed
    assert "shutdown on SIGUSR1 ◆ 1 jobs complete ◆ 0 failed ◆ 0 retries ◆ 0 ongoing to cancel" in caplog.text


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
