"""`@job(run_in="process")`: plain functions in separate processes."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import time
import traceback
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis.asyncio import Redis

from tests.attempt.process_jobs import (
    Odd,
    Order,
    answer,
    deaf,
    die,
    double,
    exhausted,
    fail,
    forge,
    fork_and_die,
    fork_and_return,
    hold_the_lock,
    not_text,
    report,
    sleep,
    spin,
    tell,
    wants_session,
)
from tests.support.fork_server import ForkServer
from tests.support.waiting import until
from tests.support.workers import with_worker, working
from worker import (
    Client,
    JobCancelled,
    JobContext,
    JobFailed,
    JobInterrupted,
    NonRetryableError,
    Retry,
    Settings,
    Snooze,
    job,
)
from worker.attempt.process_pool import ProcessPool
from worker.attempt.process_protocol import describe_error, make_error
from worker.embedded import Services
from worker.errors import JobProcessError, RegistrationError

pytestmark = pytest.mark.usefixtures("database")


def children() -> set[int]:
    """Return the job processes of this process."""
    return {one.pid for one in psutil.Process().children() if "worker.attempt.process_main" in " ".join(one.cmdline())}


async def _written(file: Path) -> str:
    return file.read_text() if file.exists() else ""


async def warm(client: Client) -> None:
    """Start a process in advance, so that later calls do not wait for it."""
    await (await client.enqueue(tell)).result(timeout=120)


@job
async def apart(ctx: JobContext) -> int:
    """A job that needs no process."""
    return os.getpid()


async def test_types_go_there_and_back_and_processes_are_kept_and_ended(fast: Settings, client: Client) -> None:
    order = Order(Decimal("2.50"), timedelta(minutes=3))
    one = with_worker(fast, max_job_processes=1)
    async with working(one, double, tell, apart):
        assert await (await client.enqueue(apart)).result(timeout=120) == os.getpid()
        assert not children(), "nothing is started before it is needed"
        run = await client.enqueue(double, order=order, factor=Decimal(3))
        assert await run.result(timeout=120) == Order(Decimal("7.50"), timedelta(minutes=3))
        pids = {(await (await client.enqueue(tell)).result(timeout=120))["pid"] for _ in range(3)}
        assert pids == children() and len(pids) == 1
    assert not children(), "the end of the worker is theirs"


async def test_the_context_says_what_it_does_anywhere(
    fast: Settings, client: Client, redis: Redis, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    began = time.time()
    async with working(with_worker(fast, max_attempts=3), tell, report, wants_session):
        run = await client.enqueue(tell)
        told: Any = await run.result(timeout=120)
        refused = await client.enqueue(wants_session)
        with pytest.raises(
            JobFailed, match=r"JobProcessError: UsageError: ctx.transaction: a job in a process has run_id"
        ):
            await refused.result(timeout=120)
        assert (told["run"], told["job"], told["attempt"], told["tries"]) == (run.id, "tell-context", 1, 3)
        assert began - 1 < told["at"] < time.time() and told["pid"] != os.getpid() and told["stdin"] == ""
        run = await client.enqueue(report, str(tmp_path / "file"))
        await until(lambda: _mirrored(redis, run.id, (b"3", b"75.0")))
        (tmp_path / "file").touch()
        assert await run.result(timeout=120) == 4
    [record] = [record for record in caplog.records if record.name == "my.log"]
    assert (record.getMessage(), record.levelno) == (f"in process {told['pid']}", logging.WARNING)
    assert (record.funcName, record.process) == ("tell", told["pid"])


async def _mirrored(redis: Redis, run_id: str, expected: tuple[bytes, bytes]) -> bool:
    line = await redis.hgetall(f"worker:run:{run_id}")
    return (line.get(b"rows"), line.get(b"percent")) == expected


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("declined", r"^JobProcessError: Declined: no \(7\)$"),
        ("odd", r"^JobProcessError: Odd: odd thing$"),
        ("exit", r"NonRetryableError: the job raised SystemExit"),
        ("value", r"^JobProcessError: ValueError: in there \(attempt 2, the last\)$"),
    ],
)
async def test_an_exception_is_judged_as_that_of_any_job(
    fast: Settings, client: Client, redis: Redis, how: str, message: str
) -> None:
    async with working(fast, fail):
        run = await client.enqueue(fail, how)
        with pytest.raises(JobFailed) as failed:
            await run.result(timeout=120)
        assert re.search(message, str(failed.value).removeprefix(f"run {run.id}: ")), failed.value
        assert await (await client.enqueue(fail, "retry")).result(timeout=120) is None
    letter = (await redis.hget("worker:dead", run.id)).decode()
    assert "process_jobs.py" in letter, "the traceback of the process"


class Unreadable(Exception):
    """An error whose text cannot be read, and which cannot be created again."""

    def __init__(self) -> None:
        super().__init__(object())

    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_make_error_describes_any_exception_without_running_its_class() -> None:
    key = make_error(json.loads(json.dumps(describe_error(KeyError("k")))))
    assert isinstance(key, JobProcessError) and (key.type_name, str(key)) == ("KeyError", "KeyError: 'k'")
    assert key.retryable and {"builtins.KeyError", "builtins.LookupError"} <= set(key.type_names)
    assert "KeyError: 'k'" in "".join(traceback.format_exception(key)), "the log shows the traceback of the process"
    unreadable = make_error(json.loads(json.dumps(describe_error(Unreadable()))))
    assert str(unreadable) == "Unreadable: <its __str__ raised RuntimeError>"
    refused = make_error(describe_error(NonRetryableError("no")))
    assert isinstance(refused, JobProcessError) and not refused.retryable


def test_make_error_keeps_what_orders_the_worker() -> None:
    retry = make_error(json.loads(json.dumps(describe_error(Retry(after=3, message="later")))))
    snooze = make_error(json.loads(json.dumps(describe_error(Snooze(4, "not yet")))))
    assert (type(retry), type(snooze)) == (Retry, Snooze)
    assert isinstance(retry, Retry) and isinstance(snooze, Snooze)
    assert (retry.after, str(retry), snooze.after, str(snooze)) == (3, "later", 4, "not yet")
    assert isinstance(make_error(describe_error(JobInterrupted())), JobInterrupted)


def test_forbids_retry_compares_the_names_of_an_error_of_a_process() -> None:
    assert fail.forbids_retry(make_error(describe_error(Odd("x")))) and fail.forbids_retry(Odd("x"))
    assert not fail.forbids_retry(make_error(describe_error(ValueError("x"))))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("segfault", r"its process \d+ was ended by SIGSEGV in the middle of die"),
        ("killed", r"its process \d+ was ended by SIGKILL in the middle of die, perhaps because it ran out of memory"),
        ("exits", r"its process \d+ ended with exit status 3 in the middle of die"),
    ],
)
async def test_a_process_that_dies_fails_its_own_job_alone(
    fast: Settings, client: Client, tmp_path: Path, how: str, message: str
) -> None:
    file = tmp_path / "file"
    async with working(with_worker(fast, max_job_processes=2), die, report, double):
        beside = await client.enqueue(report, str(file))
        run = await client.enqueue(die, how)
        with pytest.raises(JobFailed, match=message + r".* \(attempt 1, the last\)"):
            await run.result(timeout=120)
        file.touch()
        assert await beside.result(timeout=120) == 4
        after = await client.enqueue(double, order=Order(Decimal(1), timedelta(0)))
        assert (await after.result(timeout=120)).price == 2


async def test_one_that_dies_without_a_job_is_replaced(fast: Settings, client: Client) -> None:
    async with working(with_worker(fast, max_job_processes=1), tell):
        first: Any = await (await client.enqueue(tell)).result(timeout=120)
        os.kill(first["pid"], signal.SIGKILL)
        await until(lambda: _gone(first["pid"]))
        second: Any = await (await client.enqueue(tell)).result(timeout=120)
        assert second["pid"] != first["pid"] and children() == {second["pid"]}
        assert second["attempt"] == 1, "no job was lost on the dead one"


async def test_a_timeout_is_raised_inside_with_time_to_clean_up(fast: Settings, client: Client, tmp_path: Path) -> None:
    file, other = tmp_path / "file", tmp_path / "other"
    async with working(with_worker(fast, max_job_processes=1), spin, tell):
        await warm(client)
        before = children()
        run = await client.enqueue(spin, str(file))
        with pytest.raises(JobFailed, match=r"TimeoutError: took longer than 0\.3 s"):
            await run.result(timeout=120)
        assert file.read_text() == "cleaned up"
        part = await client.enqueue(spin, str(other), answer=True)
        assert await part.result(timeout=120) == "a part"
        assert other.read_text() == "cleaned up"
        await warm(client)
        assert children() == before, "the process is as good as before"


@pytest.mark.parametrize("way", ["lock", "deaf"])
async def test_what_does_not_end_is_killed(
    fast: Settings, client: Client, tmp_path: Path, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    quick = with_worker(fast, max_job_processes=1, job_timeout_seconds=0.3, grace_period_seconds=0.2)
    async with working(quick, hold_the_lock, deaf, tell) as worker:
        await warm(client)
        if way == "lock":
            run = await client.enqueue(hold_the_lock, str(tmp_path / "file"))
        else:
            run = await client.enqueue(deaf)
        with pytest.raises(JobFailed, match=r"did not end within 0\.2 s of that: abandoned"):
            await run.result(timeout=120)
        told: Any = await (await client.enqueue(tell)).result(timeout=120)
        assert children() == {told["pid"]}
        assert worker.abandoned_tasks == 0
    if way == "deaf":  # one that holds the lock cannot answer
        assert re.search(r"Its process \d+ was killed\. Stack:\n.*in deaf\n +time\.sleep", caplog.text, re.S)
    else:
        assert re.search(r"Its process \d+ was killed; it did not report its stack", caplog.text)


async def test_an_order_to_cancel_is_obeyed_within_a_second(fast: Settings, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "file"
    async with working(fast, sleep):
        run = await client.enqueue(sleep, str(file))
        await until(lambda: _written(file))
        began = time.monotonic()
        await run.cancel()
        with pytest.raises(JobCancelled):
            await run.result(timeout=120)
        assert time.monotonic() - began < 5  # 0.2 s on a quiet machine; its grace is 30 s, and its sleep 60


async def test_a_drain_hands_it_back(fast: Settings, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "file"
    run = await client.enqueue(sleep, str(file))
    async with working(with_worker(fast, drain_timeout_seconds=0.1), sleep):
        await until(lambda: _written(file))
    assert await run.status() == "waiting"
    assert not children()


@pytest.mark.parametrize("name", ["sleep", "hold_the_lock"])
async def test_no_process_outlives_a_worker_that_is_killed(
    servers: Services, client: Client, tmp_path: Path, name: str
) -> None:
    file = tmp_path / "file"
    await client.enqueue(name, str(file))
    command = ["worker", "--set", 'worker.packages=["tests.attempt.process_jobs"]']
    command += ["--set", "worker.grace_period_seconds=60", "run"]
    worker = ForkServer.get().spawn(*command, env=servers.environment(), stdout=1, stderr=2)
    try:
        pid = int(await until(lambda: _written(file)))
        assert psutil.pid_exists(pid)
    finally:
        worker.kill()
        await asyncio.to_thread(worker.wait)
    await until(lambda: _gone(pid))


async def _gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_a_fork_that_returns_answers_no_call(fast: Settings, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "file"
    async with working(with_worker(fast, max_job_processes=1), answer, fork_and_return):
        fork = int(await (await client.enqueue(fork_and_return, str(file))).result(timeout=120))
        assert psutil.pid_exists(fork)
        file.touch()  # from now on the fork may answer
        assert [await (await client.enqueue(answer, n)).result(timeout=120) for n in range(3)] == [0, 1, 2]
        await until(lambda: _gone(fork))


async def test_an_answer_to_another_call_ends_the_process(
    fast: Settings, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    async with working(with_worker(fast, max_job_processes=1), answer, forge):
        assert await (await client.enqueue(answer, 1)).result(timeout=120) == 1
        before = children()
        forged = await client.enqueue(forge, '{"kind": "result", "value": "7", "call": 1}')
        with pytest.raises(JobFailed, match="JobProcessDied"):
            await forged.result(timeout=120)
        assert await (await client.enqueue(answer, 2)).result(timeout=120) == 2
        assert children().isdisjoint(before)
        for line in ("no message", "[]", '{"kind": "log", "value": {}}'):
            noise = await client.enqueue(forge, line)
            with pytest.raises(JobFailed, match="JobProcessDied"):
                await noise.result(timeout=120)
    assert "answer of another call" in caplog.text and "unreadable message" in caplog.text


async def test_the_end_of_a_process_is_seen_though_a_fork_holds_its_socket(
    fast: Settings, client: Client, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    async with working(fast, fork_and_die):
        run = await client.enqueue(fork_and_die, str(file))
        with pytest.raises(JobFailed, match="was ended by SIGKILL in the middle of fork_and_die"):
            await run.result(timeout=120)
        await until(lambda: _gone(int(file.read_text())))


async def test_stopiteration_and_a_wrong_result_fail_the_job(fast: Settings, client: Client) -> None:
    async with working(fast, exhausted, not_text):
        with pytest.raises(JobFailed, match="JobProcessError: StopIteration"):
            await (await client.enqueue(exhausted)).result(timeout=120)
        with pytest.raises(JobFailed, match="UsageError: job not_text: its result of type int does not fit `-> str`"):
            await (await client.enqueue(not_text)).result(timeout=120)


async def test_what_a_job_has_started_does_not_outlive_a_worker_that_is_killed(
    servers: Services, client: Client, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    await client.enqueue("start_and_wait", str(file))
    command = ["worker", "--set", 'worker.packages=["tests.attempt.process_jobs"]']
    command += ["--set", "worker.grace_period_seconds=60", "run"]
    worker = ForkServer.get().spawn(*command, env=servers.environment(), stdout=1, stderr=2)
    try:
        text = await until(lambda: _written(file))
        pids = [int(pid) for pid in text.split()]
        assert len(pids) == 2 and all(map(psutil.pid_exists, pids))
    finally:
        worker.kill()
        await asyncio.to_thread(worker.wait)
    for pid in pids:
        await until(lambda pid=pid: _gone(pid))


def test_what_a_process_cannot_run_is_refused_with_what_to_do() -> None:
    with pytest.raises(
        RegistrationError, match=r'run_in="process" is for plain functions, and .* is an `async def`: make'
    ):

        @job(run_in="process")
        async def wrong(ctx: JobContext) -> None:
            """A class that is not a plain value."""

    with pytest.raises(RegistrationError, match="define it by `def` at the top level of a module"):

        @job(run_in="process")
        def local(ctx: JobContext) -> None:
            """A class that cannot be imported."""

    def main(ctx: JobContext) -> None:
        """In a script."""

    main.__module__ = "__main__"
    with pytest.raises(RegistrationError, match=r"the script that was started.*move it to a module"):
        job(run_in="process")(main)


def test_process_pool_has_as_many_processes_as_there_are_cpus() -> None:
    assert ProcessPool(None).max_processes == len(os.sched_getaffinity(0))
