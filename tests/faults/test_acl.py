"""The documented ACL users may do what they need, and nothing else."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError
from sqlalchemy import select

from tests.faults.gated import complaints, gated, start
from tests.faults.redis_scene import at, log_and_forget, make_folder, start_valkey  # noqa: F401  (fixtures: `fast`, `home`, `valkey`)
from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.waiting import until
from tests.support.workers import working
from worker import Client, JobCancelled, JobContext, NonRetryableError, Settings, job
from worker.db.engine import Database
from worker.embedded.valkey import EmbeddedValkey

ROOT = Path(__file__).parent.parent.parent


@job
async def walked(ctx: JobContext) -> int:
    """Enter the ledger."""
    async for batch in ctx.chunks(select(Author), size=4):
        for author in batch:
            author.seen += 1
    return ctx.rows_done


@job(concurrency=1, rate="100/second")
async def limited(ctx: JobContext) -> None:
    """Pass a gate."""


@job(cron="* * * * *")
async def each_minute(ctx: JobContext) -> None:
    """Be enqueued by cron."""


@job
async def fails(ctx: JobContext) -> None:
    """Become a dead letter."""
    raise NonRetryableError("no")


#: What operators do, in one process.
COMMANDS = (
    "status",
    "runs",
    "jobs",
    "cron",
    "top --once",
    "dead",
    "dead show failed",
    "retry failed",
    "pause walked",
    "resume walked",
    "pace walked --max-rows-per-second 5",
    "pace walked --reset",
    "enqueue touch_by_sweep --delay 600 --id later",
    "cancel later",
    "doctor",
)
COMMANDS_ONE_BY_ONE = """
import sys
from worker.cli import main
for line in sys.argv[1:]:
    sys.argv = ["worker", *line.split()]
    code = main()
    assert code == 0, f"{line}: {code}"
"""


def documented_rules(user: str = "longhaul") -> list[str]:
    """Return the rules of a user of docs/how-to/secure-redis.md."""
    page = (ROOT / "docs" / "how-to" / "secure-redis.md").read_text(encoding="utf-8")
    found = re.search(rf"^redis-cli ACL SETUSER {user} on ((?:.*\\\n)*.*)$", page, re.MULTILINE)
    assert found
    return ["on", *shlex.split(found[1].replace("\\\n", " "))]


async def test_the_documented_acl_user_may_do_all_that_is_needed_and_nothing_else(
    fast: Settings, valkey: EmbeddedValkey, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    await fill_authors(database, 12)
    async with Redis(port=valkey.port) as admin:
        rules = documented_rules()
        await admin.execute_command("ACL", "SETUSER", "longhaul", *rules)
        password = next(rule[1:] for rule in rules if rule.startswith(">"))
        url = f"redis://longhaul:{password}@127.0.0.1:{valkey.port}/0"
        settings = at(fast, url)
        known = (gated, walked, limited, each_minute, fails)
        async with working(settings, *known) as worker, Client(settings) as client:

            async def watches() -> bool:
                return worker.listener.active

            await until(watches)
            chain = await client.enqueue(walked.options(then=limited.call(), priority=5))
            assert await chain.result(timeout=120) == 12
            assert await chain.next_runs[0].result(timeout=120) is None
            group = await client.group([limited.call(), limited.call()], then=limited.call())
            assert group.callback is not None
            assert await group.callback.result(timeout=120) is None
            await (await client.enqueue(limited)).result(timeout=120)
            await client.enqueue_many(limited, [{}] * 3)
            run = await start(client, "to-be-cancelled")
            assert await run.cancel()
            with pytest.raises(JobCancelled):
                await run.result(timeout=120)
            failed = await client.enqueue(fails.options(id="failed"))
            await until(lambda: admin.hexists("worker:dead", "failed"))
            [fired] = await worker.scheduler.look(now=worker.scheduler._entries[0].next_due)
            await admin.zadd("arq:queue", {fired: 0})  # now, and not when the next minute begins
            assert await client.run(fired).result(timeout=120) is None
            assert [report.state async for report in failed.progress()][-1] == "dead"
            await until(lambda: admin.hget("worker:jobs", "each_minute:succeeded"))
            ran = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", COMMANDS_ONE_BY_ONE, *COMMANDS],
                env=os.environ
                | {"DATABASE_URL": fast.database.url, "REDIS_URL": url}
                | {"LONGHAUL_WORKER__PACKAGES": '["tests.faults.jobs"]'},
                capture_output=True,
                text=True,
                timeout=60,
            )
            assert ran.returncode == 0, ran.stdout + ran.stderr
        assert await admin.hget("worker:jobs", "walked:succeeded") == b"1"
        assert {entry["object"] for entry in await admin.acl_log()} <= {"config|get"}  # the doctor can do without
        async with Redis.from_url(url) as user:
            for refused in ("FLUSHALL", "CONFIG SET maxmemory 1", "GET session:1", "KEYS *", "SUBSCRIBE news"):
                with pytest.raises(NoPermissionError):
                    await user.execute_command(*refused.split())
    assert [line for line in complaints(caplog) if line.startswith("Redis")] == []


async def test_the_documented_users_of_clients_and_readers_do_what_they_may(
    fast: Settings, valkey: EmbeddedValkey, database: Database
) -> None:
    await fill_authors(database, 12)
    async with Redis(port=valkey.port) as admin:
        for user in ("longhaul-client", "longhaul-reader"):
            await admin.execute_command("ACL", "SETUSER", user, *documented_rules(user))
        password = documented_rules("longhaul-client")[1].removeprefix(">")
        urls = {user: f"redis://longhaul-{user}:{password}@127.0.0.1:{valkey.port}/0" for user in ("client", "reader")}
        async with (
            working(at(fast, f"redis://127.0.0.1:{valkey.port}/0"), gated, walked, limited),
            Client(at(fast, urls["client"])) as client,
            Client(at(fast, urls["reader"])) as reader,
        ):
            chain = await client.enqueue(walked.options(then=limited.call(), priority=5))
            assert await chain.result(timeout=120) == 12
            assert await chain.next_runs[0].result(timeout=120) is None
            group = await client.group([limited.call(), limited.call()], then=limited.call())
            assert group.callback is not None
            assert await group.callback.result(timeout=120) is None
            await client.enqueue_many(limited, [{}] * 3)
            run = await start(client, "to-be-cancelled")
            assert await reader.run(run.id).status() == "running"
            await admin.sadd("worker:cancelled", run.id)
            with pytest.raises(JobCancelled):
                await reader.run(run.id).result(timeout=120)
            assert [report.state async for report in run.progress()][-1] == "cancelled"
            await client.enqueue(limited.options(id="later", delay=600))
            assert "later" in {one.id for one in await reader.runs()}
            assert await reader.dead_letters() == []
            assert (await reader.status()) is not None
        refused = {
            "client": (
                "SADD worker:paused *",
                "SET arq:result:x 1",
                "SET arq:in-progress:x me",
                "HSET worker:dead x y",
            ),
            "reader": ("ZADD arq:queue 0 x", "SET arq:job:x 1", "SADD worker:cancelled x", "EVAL return 0"),
        }
        for user, commands in refused.items():
            async with Redis.from_url(urls[user]) as redis:
                for command in (*commands, "FLUSHALL", "CONFIG GET *", "GET session:1", "KEYS *"):
                    with pytest.raises(NoPermissionError):
                        await redis.execute_command(*command.split())
