"""The command line: its output and exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from redis.asyncio import Redis
from sqlalchemy import select, text

from tests.models import Author
from tests.runtime.test_worker import gate, walk
from tests.support.authors import fill_authors
from tests.support.command_line import CommandLine, error_line
from tests.support.waiting import until, until_status
from tests.support.workers import working
from worker import Client, NonRetryableError, Settings, job
from worker.attempt.context import JobContext
from worker.db.engine import Database
from worker.embedded import Services
from worker.queue import keys
from worker.queue.run import ProgressReport, Run


@job
async def die(ctx: JobContext) -> None:
    """Fail permanently."""
    raise NonRetryableError("no")


async def test_a_run_is_paused_shown_resumed_and_retried(
    cli: CommandLine, fast: Settings, client: Client, database: Database, redis: Redis
) -> None:
    await fill_authors(database, 50)
    gate.clear()
    gate.update(go=asyncio.Event(), begun=asyncio.Event())
    gate["go"].set()
    assert (await cli("pause", "*")).returncode == 0
    run = await client.enqueue(walk.options(id="w1"))
    async with working(fast, walk):
        status = json.loads((await cli("status", "--json")).stdout)
        assert status["paused"] == ["*"]
        assert (await cli("resume", "*")).returncode == 0
        assert await run.result(timeout=120) == 50
        listed = json.loads((await cli("runs", "--json")).stdout)
        assert [(one["id"], one["state"], one["rows"]) for one in listed] == [("w1", "succeeded", 50)]
        shown = (await cli("runs", "show", "w1")).stdout
        assert "1-chunks" in shown
        refused = await cli("retry", "w1", "--from-start", stdin="n\n")
        assert refused.returncode == 1
        again = await cli("retry", "w1", "--from-start", "--yes")
        assert again.returncode == 0

        async def done_again() -> bool:
            found = json.loads((await cli("runs", "--json")).stdout)
            return bool(found[0]["state"] == "succeeded")

        await until(done_again)
    async with database.session() as session:
        assert await session.scalar(text("SELECT min(seen) = 2 AND max(seen) = 2 FROM author"))


async def test_a_dead_letter_is_listed_and_retried(
    cli: CommandLine, fast: Settings, client: Client, database: Database
) -> None:
    run = await client.enqueue(die)
    async with working(fast, die):
        await until_status(run, "dead")
    [letter] = json.loads((await cli("dead", "--json")).stdout)
    assert (letter["id"], letter["error"]) == (run.id, "NonRetryableError: no")
    shown = (await cli("runs", "show", run.id)).stdout
    assert f"{run.id}: dead: NonRetryableError: no (not in the ledger)" in shown
    assert "Traceback (most recent call last)" in shown
    assert (await cli("retry", run.id)).returncode == 0
    assert await run.status() == "waiting"
    assert (await cli("cancel", run.id)).returncode == 0
    assert (await cli("cancel", "nobody")).returncode == 1
    assert "neither an ended run nor dead: nobody" in error_line(await cli("retry", "nobody"))


async def test_enqueue_checks_the_arguments_where_it_knows_the_job(
    cli: CommandLine, redis: Redis, database: Database
) -> None:
    fine = await cli("enqueue", "retire_hamlets", "below=500", "--id", "h1", "--json")
    assert json.loads(fine.stdout) == {"id": "h1", "new": True}
    assert json.loads(await redis.get("arq:job:h1"))["k"] == {"below": 500}
    [(_, order)] = await redis.xrange(keys.ORDERS)
    assert (order[b"order"], order[b"targets"]) == (b"enqueue", b'["h1"]')
    assert order[b"by"].startswith(b"cli:")
    wrong = await cli("enqueue", "retire_hamlets", "below=many")
    assert (wrong.returncode, await redis.zcard("arq:queue")) == (2, 1)
    assert "below: input should be a valid integer" in error_line(wrong)
    unknown = await cli("enqueue", "retire_hamlet")
    assert unknown.returncode == 2
    assert "did you mean retire_hamlets?" in error_line(unknown)


async def test_the_jobs_are_listed_with_their_arguments(cli: CommandLine) -> None:
    known = {one["name"]: one for one in json.loads((await cli("jobs", "--json")).stdout)}
    assert known["deactivate_dormant_users"]["cron"] == ["0 3 * * * Europe/London"]
    assert known["retire_hamlets"]["arguments"] == "(below: int = 1000) -> int"


async def test_settings_tell_their_origin_and_hide_passwords(cli: CommandLine) -> None:
    ran = await cli("--set", "worker.max_jobs=3", "settings", "--json", DATABASE_URL="postgres://me:secret@host/db")
    values = json.loads(ran.stdout)
    assert values["worker.max_jobs"] == {"value": 3, "from": "command line"}
    assert values["database.url"] == {
        "value": "postgresql+asyncpg://me:***@host/db",
        "from": "environment DATABASE_URL",
    }
    assert values["worker.lease_seconds"]["from"] == "default"


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "message"),
    [
        (["status"], {"REDIS_URL": "redis://127.0.0.1:1/0"}, 69, "start Redis there, or set REDIS_URL"),
        (["run"], {"REDIS_URL": "redis://127.0.0.1:1/0"}, 69, "start Redis or Valkey there, or set REDIS_URL"),
        (["run"], {"DATABASE_URL": "postgresql://127.0.0.1:1/x"}, 69, "start PostgreSQL there, or set DATABASE_URL"),
        (["runs"], {"DATABASE_URL": "postgresql://127.0.0.1:1/x"}, 69, "start PostgreSQL there"),
        (["migrate"], {"DATABASE_URL": "mysql://127.0.0.1/x"}, 78, "a PostgreSQL URL must start with postgresql://"),
        (["run"], {"LONGHAUL_WORKER__MAX_JOB": "3"}, 78, "did you mean worker.max_jobs?"),
        (["--set", "worker.max_jobs=x", "run"], {}, 78, "worker.max_jobs = 'x'"),
        (["run"], {"LONGHAUL_WORKER__PACKAGES": "nojobs"}, 2, "there is no package 'nojobs'"),
        (["--settings", "nofile.toml", "run"], {}, 78, "nofile.toml: no such settings file"),
    ],
)
async def test_cli_prints_what_is_wrong_on_one_line_and_exits_with_a_code(
    cli: CommandLine,
    real_cli: CommandLine,
    database: Database,
    arguments: list[str],
    environment: dict[str, str],
    code: int,
    message: str,
) -> None:
    ran = await (real_cli if "run" in arguments else cli)(*arguments, **environment)
    errors = [line for line in ran.stderr.splitlines() if line.startswith("worker:")]
    assert (ran.returncode, len(errors)) == (code, 1)
    assert message in errors[0]
    assert "Traceback" not in ran.stderr


async def test_run_with_a_wrong_password_says_so(real_cli: CommandLine, servers: Services, database: Database) -> None:
    host = servers.database_url.rsplit("@", 1)[1]
    ran = await real_cli("run", DATABASE_URL=f"postgresql://postgres:wrong@{host}")
    assert ran.returncode == 69
    assert "check user and password in database.url" in ran.stderr
    assert ":wrong@" not in ran.stderr


async def test_cli_refuses_a_database_that_is_not_migrated(
    cli: CommandLine, real_cli: CommandLine, servers: Services, database: Database
) -> None:
    async with database.engine.connect() as connection:
        autocommit = await connection.execution_options(isolation_level="AUTOCOMMIT")
        await autocommit.exec_driver_sql("DROP DATABASE IF EXISTS bare")
        await autocommit.exec_driver_sql("CREATE DATABASE bare")
    bare = servers.database_url.rsplit("/", 1)[0] + "/bare"
    for command, call in (("run", real_cli), ("runs", cli)):
        ran = await call(command, DATABASE_URL=bare)
        assert ran.returncode == 78
        assert "run `worker migrate`" in ran.stderr
    assert (await cli("migrate", DATABASE_URL=bare)).returncode == 0
    assert (await cli("runs", DATABASE_URL=bare)).returncode == 0
    ran = await real_cli("run", "--burst", DATABASE_URL=bare)
    assert ran.returncode == 0


async def test_runs_explains_a_missing_database(cli: CommandLine, servers: Services, database: Database) -> None:
    base = servers.database_url.rsplit("/", 1)[0]
    ran = await cli("runs", DATABASE_URL=f"{base}/nowhere")
    assert ran.returncode == 69
    assert "create the database, or correct database.url" in error_line(ran)


async def test_status_and_runs_show_waiting_runs_and_pause_notices_a_typing_error(
    cli: CommandLine, redis: Redis, database: Database
) -> None:
    assert "0 waiting, 0 deferred, 0 running" in (await cli("status")).stdout
    assert (await cli("enqueue", "retire_hamlets", "--id", "h1", "--delay", "60")).returncode == 0
    told = await cli("runs", "show", "h1")
    assert (told.returncode, told.stdout) == (0, "h1: deferred (not in the ledger)\n")
    assert "h1" in (await cli("status")).stdout
    paused = (await cli("pause", "retire_hamlets", "h1", "retire_hamlet")).stdout
    assert "no job here is called retire_hamlet;" in paused
    both = await cli("enqueue", "retire_hamlets", "--delay", "1", "--at", "2030-01-01")
    assert (both.returncode, error_line(both)) == (2, "worker: enqueue: give --delay or --at, not both\n")
    wrong = await cli("pace", "h1")
    assert wrong.returncode == 2
    assert (await cli("pace", "h1", "--max-rows-per-second", "5")).returncode == 0
    assert await redis.hgetall("worker:pace") == {b"h1": b"5"}
    assert (await cli("pace", "h1", "--reset")).returncode == 0
    assert await redis.hgetall("worker:pace") == {}


@job
async def walk_unevenly(ctx: JobContext) -> int:
    """Wait in the third batch until the gate opens."""
    async for batch in ctx.chunks(select(Author.id), size=10, lock=False):
        if batch.number == 3:
            gate["begun"].set()
            await gate["go"].wait()
    return ctx.rows_done


async def test_percentage_that_is_a_rough_estimate_has_a_tilde(
    cli: CommandLine, fast: Settings, client: Client, database: Database
) -> None:
    await fill_authors(database, 40)
    async with database.transaction() as session:
        await session.execute(text("ANALYZE author"))
        await session.execute(text("UPDATE author SET id = id + 1000000 WHERE id > 35"))
    gate.clear()
    gate.update(go=asyncio.Event(), begun=asyncio.Event())
    async with working(fast, walk_unevenly):
        run = await client.enqueue(walk_unevenly)
        async with asyncio.timeout(30):
            await gate["begun"].wait()
        async with asyncio.timeout(30):
            report = await known_progress(run)
        assert report is not None
        assert report.is_estimate
        assert "~0.0" in (await cli("status")).stdout
        assert "~0.0" in (await cli("runs", "show", run.id)).stdout
        gate["go"].set()
        assert await run.result(timeout=120) == 40
        shown = (await cli("runs", "show", run.id)).stdout
        assert "100.0" in shown
        assert "~" not in shown


async def known_progress(run: Run[int]) -> ProgressReport | None:
    async for report in run.progress():
        if report.percent is not None:
            return report
    return None


def test_the_shell_completes_commands() -> None:
    asked = {"_WORKER_COMPLETE": "complete_bash", "COMP_WORDS": "worker en", "COMP_CWORD": "1"}
    command = Path(sys.executable).parent / "worker"
    ran = subprocess.run([command], env=os.environ | asked, capture_output=True, text=True)
    assert ran.stdout.split() == ["enqueue"]
