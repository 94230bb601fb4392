"""The main paths of a queue: what jobs, clients, operators and the API do, once each, on any Redis."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from datetime import timedelta

import pytest
from sqlalchemy import select

from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.waiting import until, until_status, until_true
from tests.support.workers import with_worker, working
from tests.web.conftest import connect
from worker import (
    PREVIOUS_RESULT,
    Client,
    JobCancelled,
    JobContext,
    JobFailed,
    NonRetryableError,
    Settings,
    SyncClient,
    job,
)
from worker.db.engine import Database
from worker.runtime.worker import Worker
from worker.web import web_app

failures: list[str] = []


@job
async def walk_authors(ctx: JobContext, add: int = 1) -> int:
    """Enter the ledger."""
    async for batch in ctx.chunks(select(Author), size=4):
        for author in batch:
            author.seen += add
    return ctx.rows_done


@job(concurrency=1, rate="200/second")
async def limited(ctx: JobContext, text: str = "") -> str:
    """Pass the limits."""
    return text


@job(fair_by="tenant", priority=3)
async def fair_one(ctx: JobContext, tenant: str) -> str:
    """Take turns."""
    return tenant


@job(unique=["name"])
async def only_one(ctx: JobContext, name: str) -> None:
    """Be unique."""


@job(cron="* * * * *")
async def each_minute(ctx: JobContext) -> None:
    """Be enqueued by cron."""


@job
async def fails(ctx: JobContext, until_cured: bool = True) -> None:
    """Become a dead letter."""
    failures.append(ctx.run_id)
    raise NonRetryableError("no")


@job
async def sum_up(ctx: JobContext, results: list[str]) -> int:
    """Be the callback of a group."""
    return len(results)


@job
async def waits(ctx: JobContext) -> None:
    """Run until it is cancelled."""
    await asyncio.Event().wait()


@job
async def rare(ctx: JobContext) -> str:
    """Be unknown to the first worker."""
    return "rare"


OTHER = "main-paths:other"
JOBS = (walk_authors, limited, fair_one, only_one, each_minute, fails, sum_up, waits)

#: What operators do, in one process.
COMMANDS = (
    "status", "runs", "runs show the-walk", "jobs", "cron", "top --once", "dead", "dead show failed", "retry failed",
    "pause walk_authors", "resume walk_authors", "pace walk_authors --max-rows-per-second 5",
    "pace walk_authors --reset", "enqueue touch_by_sweep --delay 600 --id later", "cancel later", "keys", "doctor",
)  # fmt: skip
_ONE_BY_ONE = """
import sys
from worker.cli import main
for line in sys.argv[1:]:
    sys.argv = ["worker", *line.split()]
    code = main()
    assert code == 0, f"{line}: {code}"
"""


async def take_main_paths(settings: Settings, database: Database) -> None:
    """Run all of it, and check the results."""
    await fill_authors(database, 12)
    settings = with_worker(settings, queues={"arq:queue": 1, OTHER: 1}, lease_seconds=0.9)
    async with working(settings, *JOBS) as worker, Client(settings, database=database) as client:
        await until_true(lambda: worker.listener.active)
        await _enqueue_and_wait(client, database)
        await _operate(client)
        await _fire_cron(worker, client)
        await asyncio.to_thread(_use_sync_client, settings)
        await _ask_the_api(settings, client)
    await _park_an_unknown_job(settings, database)
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", _ONE_BY_ONE, *COMMANDS],
        env=os.environ
        | {"DATABASE_URL": settings.database.url, "REDIS_URL": settings.redis.url}
        | {"LONGHAUL_WORKER__PACKAGES": '["tests.faults.jobs"]'},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert " wrong" not in ran.stdout


async def _enqueue_and_wait(client: Client, database: Database) -> None:
    chain = await client.enqueue(walk_authors.options(id="the-walk", then=limited.call("next"), priority=5))
    assert await chain.result(timeout=120) == 12
    assert await chain.next_runs[0].result(timeout=120) == "next"
    group = await client.group([limited.call("a"), limited.call("b")], then=sum_up.call(results=PREVIOUS_RESULT))
    assert group.callback is not None
    assert await group.callback.result(timeout=120) == 2
    many = await client.enqueue_many(limited, [{"text": str(n)} for n in range(3)])
    assert [await one.result(timeout=120) for one in many] == ["0", "1", "2"]
    turns = [await client.enqueue(fair_one, tenant) for tenant in ("north", "north", "south")]
    assert [await one.result(timeout=120) for one in turns] == ["north", "north", "south"]
    first = await client.enqueue(only_one.options(delay=600), "x")
    assert (await client.enqueue(only_one.options(delay=600), "x")).id == first.id
    await first.cancel()
    later = await client.enqueue(limited.options(delay=timedelta(milliseconds=20)), "later")
    assert await later.result(timeout=120) == "later"
    async with database.transaction() as session:
        relayed = await client.enqueue_in(session, fair_one, "west")
        relayed_many = await client.enqueue_many_in(session, limited, [{"text": "p"}, {"text": "q"}])
    assert await relayed.result(timeout=120) == "west"
    assert [await one.result(timeout=120) for one in relayed_many] == ["p", "q"]


async def _operate(client: Client) -> None:
    run = await client.enqueue(waits.options(id="to-be-cancelled"))
    await until_status(run, "running")
    await client.pace(run.id, rows_per_second=9)
    assert await run.cancel()
    with pytest.raises(JobCancelled):
        await run.result(timeout=120)
    await client.pause("limited")
    held = await client.enqueue(limited, "held")
    await until_status(held, "paused")
    await client.resume("limited")
    assert await held.result(timeout=120) == "held"
    await client.limit("limited", running=2)
    await client.limit_rate("limited", runs_per_second=100)
    assert "limited" in str(await client.limits())
    await client.limit("limited", running=None)
    await client.limit_rate("limited", runs_per_second=None)
    assert await client.cron(JOBS)
    failed = await client.enqueue(fails.options(id="failed"))
    with pytest.raises(JobFailed):
        await failed.result(timeout=120)
    assert [report.state async for report in failed.progress()][-1] == "dead"
    assert [letter.id for letter in await client.dead_letters()] == ["failed"]
    before = len(failures)
    await client.retry("failed")
    await until_true(lambda: len(failures) > before)
    await until(client.dead_letters)
    await until_status(failed, "dead")
    assert "the-walk" in {one.id for one in await client.runs()}
    assert (await client.status()).dead_letters == 1


async def _fire_cron(worker: Worker, client: Client) -> None:
    [fired] = await worker.scheduler.look(now=worker.scheduler._entries[0].next_due)
    await client.redis.zadd("arq:queue", {fired: 0})  # now, and not when the next minute begins
    assert await client.run(fired).result(timeout=120) is None


def _use_sync_client(settings: Settings) -> None:
    with SyncClient(settings) as client:
        assert client.enqueue(limited, "blocking").result(timeout=120) == "blocking"
        assert [one.result(timeout=120) for one in client.enqueue_many(limited, [{"text": "m"}])] == ["m"]
        assert client.status().dead_letters == 1


async def _ask_the_api(settings: Settings, client: Client) -> None:
    app = web_app(settings, jobs=JOBS)
    try:
        async with connect(app) as http:
            for path in (
                "/overview", "/runs", "/runs/the-walk", "/runs/the-walk/steps", "/queues", "/workers", "/jobs", "/cron",
                "/limits", "/runs/the-walk/events", "/", "/dead-letters", "/dead-letters/failed", "/quarantine",
                "/orders", "/doctor",
            ):  # fmt: skip
                answer = await http.get(path)
                assert answer.status_code == 200, f"{path}: {answer.text}"
            for _ in range(2):
                made = await http.post(
                    "/runs", json={"job": "limited", "arguments": {"text": "api"}}, headers={"Idempotency-Key": "k1"}
                )
                assert made.status_code in (200, 201), made.text
            assert await client.run(made.json()["id"]).result(timeout=120) == "api"
    finally:
        await app.close()


async def _park_an_unknown_job(settings: Settings, database: Database) -> None:
    async with Client(settings) as client:
        run = await client.enqueue(rare.options(queue=OTHER))
        async with working(settings, limited):

            async def is_parked() -> bool:
                return bool(await client.redis.exists(f"worker:unknown:{OTHER}"))

            await until(is_parked)
        async with working(settings, rare):
            assert await run.result(timeout=120) == "rare"
