"""`worker cron` on the command line."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from redis.asyncio import Redis

from jobs.users import deactivate_dormant_users
from tests.support.command_line import CommandLine, error_line
from worker import Settings
from worker.db.engine import Database
from worker.ledger import Ledger
from worker.queue import keys
from worker.queue.store import QueueStore
from worker.runtime.scheduler import Scheduler
from worker.types import Registry


async def test_due_times_last_runs_and_one_run_now(
    cli: CommandLine,
    redis: Redis,
    database: Database,
    settings: Settings,
) -> None:
    [line] = await listed(cli)
    assert (line["job"], line["line"]) == ("deactivate_dormant_users", "0 3 * * * Europe/London")
    assert datetime.now(UTC) < datetime.fromisoformat(line["next"]) < datetime.now(UTC) + timedelta(hours=26)
    assert (line["last"], line["run"], line["state"]) == (None, None, None)

    worker = Scheduler(Registry([deactivate_dormant_users]), Ledger(database), QueueStore(redis), settings.worker)
    now = datetime.now(UTC)
    await worker.start(now - timedelta(hours=30))
    [line] = await listed(cli)
    assert line["last"] is None  # first seen, not fired
    [run_id] = await worker.look(now)
    [line] = await listed(cli)
    assert (line["run"], line["state"]) == (run_id, "waiting")
    assert datetime.fromisoformat(line["last"]) <= now
    await redis.flushall()
    assert (await listed(cli))[0]["state"] == "deleted"
    assert "deactivate_dormant_users" in (await cli("cron")).stdout

    by_hand = await cli("cron", "trigger", "deactivate_dormant_users")
    assert await redis.zrange("arq:queue", 0, -1) == [by_hand.stdout.strip().encode()]
    assert (await listed(cli))[0]["run"] == run_id  # the due times are unchanged
    [(_, order)] = await redis.xrange(keys.ORDERS)
    assert (order[b"order"], order[b"targets"]) == (b"cron_run", b'["deactivate_dormant_users"]')
    assert order[b"by"].startswith(b"cli:")


async def listed(cli: CommandLine) -> list[dict[str, Any]]:
    ran = await cli("cron", "--json")
    assert ran.returncode == 0, ran.stderr
    lines: list[dict[str, Any]] = json.loads(ran.stdout)
    return lines


async def test_a_job_without_a_line_or_an_unknown_one_is_refused(cli: CommandLine) -> None:
    plain = await cli("cron", "trigger", "retire_hamlets")
    assert (plain.returncode, "worker enqueue retire_hamlets" in error_line(plain)) == (2, True)
    unknown = await cli("cron", "trigger", "nobody")
    assert unknown.returncode == 2
