"""`worker enqueue --wait` says what it waits for, and ends."""

from __future__ import annotations

import asyncio
import json

import pytest
from redis.asyncio import Redis

from tests.cli.test_cli import die
from tests.queue.test_client import add
from tests.support.command_line import CommandLine
from tests.support.workers import working
from worker import Client, JobContext, Settings, job
from worker.cli import commands

pytestmark = pytest.mark.usefixtures("database", "redis")
PACKAGES = {"LONGHAUL_WORKER__PACKAGES": "tests.none"}  # the command enqueues without validation

gate: dict[str, asyncio.Event] = {}


@job
async def hold(ctx: JobContext) -> str:
    """Run until released."""
    await gate["go"].wait()
    return "released"


@pytest.fixture(autouse=True)
async def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at the state of the run more often than each five seconds."""
    gate["go"] = asyncio.Event()
    monkeypatch.setattr(commands, "_LOOK_SECONDS", 0.05)


async def test_wait_without_a_worker_says_so_and_ends_with_its_timeout(cli: CommandLine) -> None:
    ran = await cli("enqueue", "add", "a=1", "--id", "one", "--wait", "--timeout", "1.5", **PACKAGES)
    assert ran.returncode == 1
    assert "run one is waiting, and no worker has been seen: start one with `worker run`" in ran.stderr
    assert "1.5 s" in ran.stderr and "Traceback" not in ran.stderr
    assert ran.stdout == ""


async def test_wait_says_that_the_run_is_deferred(cli: CommandLine) -> None:
    ran = await cli("enqueue", "add", "a=1", "--id", "one", "--delay", "60", "--wait", "--timeout", "1.5", **PACKAGES)
    assert ran.returncode == 1 and "run one is deferred" in ran.stderr


async def test_wait_says_that_the_run_is_running_and_prints_its_result(
    cli: CommandLine, fast: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = commands._waiting_for

    async def look_and_release(*arguments: object) -> str:
        line = await said(*arguments)  # type: ignore[arg-type]
        if "is running" in line:
            loop.call_soon_threadsafe(gate["go"].set)
        return line

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(commands, "_waiting_for", look_and_release)
    async with working(fast, hold):
        ran = await cli("enqueue", "hold", "--id", "one", "--wait", "--timeout", "60", **PACKAGES)
    assert ran.returncode == 0 and ran.stdout == '"released"\n'
    assert "run one is running; waiting for its end" in ran.stderr


async def test_wait_with_json_prints_id_and_result(cli: CommandLine, fast: Settings) -> None:
    async with working(fast, add):
        ran = await cli("enqueue", "add", "a=1", "b=2", "--id", "one", "--wait", "--json", **PACKAGES)
    assert json.loads(ran.stdout) == {"id": "one", "new": True, "result": 3}


async def test_wait_for_a_run_that_fails_ends_with_its_error(cli: CommandLine, fast: Settings, redis: Redis) -> None:
    async with working(fast, die):
        ran = await cli("enqueue", "die", "--id", "one", "--wait", "--timeout", "60", **PACKAGES)
    assert ran.returncode == 1 and "NonRetryableError: no" in ran.stderr and "Traceback" not in ran.stderr


async def test_wait_counts_the_workers_that_are_there(cli: CommandLine, fast: Settings, client: Client) -> None:
    async with working(fast.model_copy(update={"worker": fast.worker.model_copy(update={"max_jobs": 1})}), hold):
        await client.enqueue(hold.options(id="first"))
        ran = await cli("enqueue", "hold", "--id", "one", "--wait", "--timeout", "2.5", **PACKAGES)
        gate["go"].set()
    assert ran.returncode == 1 and "is waiting; workers of its queue: 1" in ran.stderr


@pytest.mark.parametrize("entry", ["*", "arq:queue", "hold", "one", "hold?x=1"])
async def test_wait_names_the_pause_of_its_run(cli: CommandLine, redis: Redis, entry: str) -> None:
    await redis.sadd("worker:paused", entry)
    await redis.hset("worker:run:one", "state", "paused")
    ran = await cli("enqueue", "hold", "--id", "one", "--wait", "--timeout", "1.5", **PACKAGES)
    expected = "`worker status` lists what is paused" if "?" in entry else f"`worker resume '{entry}'` lets it continue"
    assert ran.returncode == 1 and expected in ran.stderr


async def test_wait_says_that_no_worker_serves_its_queue_or_knows_its_job(cli: CommandLine, fast: Settings) -> None:
    rules = fast.worker.model_copy(update={"queues": {"arq:queue": 1, "slow": 1}})
    wait = ("--wait", "--timeout", "1.5")
    async with working(fast.model_copy(update={"worker": rules}), hold):
        elsewhere = await cli("enqueue", "hold", "--queue", "heavy", *wait, **PACKAGES)
        served = await cli("enqueue", "nosuch", "--queue", "slow", *wait, **PACKAGES)
    assert "no worker takes runs from its queue heavy: start one with LONGHAUL_WORKER__QUEUE=heavy" in elsewhere.stderr
    assert "unknown job 'nosuch'" in served.stderr and "workers of its queue: 1" in served.stderr


@pytest.mark.parametrize("arguments", [("--timeout", "5"), ("--wait", "--timeout", "-1")])
async def test_timeout_is_refused_where_it_means_nothing(cli: CommandLine, arguments: tuple[str, ...]) -> None:
    ran = await cli("enqueue", "add", *arguments, **PACKAGES)
    assert ran.returncode == 2
