"""The audit of orders from clients, the command line and redis-cli, in the events and in the ledger."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.command_line import CommandLine
from tests.support.waiting import until
from tests.support.workers import working
from worker import Client, JobContext, Settings, job
from worker.db.engine import Database
from worker.ledger import Ledger
from worker.queue import keys
from worker.queue.audit import ordering_as
from worker.runtime import order_audit


@job
async def quick(ctx: JobContext) -> None:
    """Return."""


async def test_orders_of_clients_command_line_and_redis_cli_are_recorded_with_their_givers(
    cli: CommandLine,
    client: Client,
    fast: Settings,
    database: Database,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(order_audit, "_COPY_SECONDS", 0.0)
    ledger = Ledger(database)

    async def listed(count: int) -> list[tuple[str, str, Any, Any]]:
        async def enough() -> bool:
            return len(await ledger.list_orders()) >= count

        await until(enough)
        return [(one.order, one.ordered_by, one.targets, one.details) for one in reversed(await ledger.list_orders())]

    await redis.sadd(keys.PAUSED, "before")  # while no worker runs
    async with working(fast, quick), working(fast, quick):  # two workers record each order once
        assert await listed(1) == [("pause", "redis-cli", ["before"], {})]
        with ordering_as("web:deploy"):
            await client.pause("a", "b")
        assert await client.resume("a", "never") == 1
        ran = await cli("pace", "quick", "--max-rows-per-second", "1e7")
        assert ran.returncode == 0, ran.stderr
        found = (await listed(4))[1:]
        assert [one[0] for one in found] == ["pause", "resume", "pace"]
        assert (found[0][1], found[1][1], found[2][1].split(":")[0]) == ("web:deploy", "client", "cli")
        assert (found[0][2], found[2][3]) == (["a", "b"], {"rows_per_second": 1e7})
        await redis.srem(keys.PAUSED, "b")
        await redis.hset(keys.PACE, "quick", "50")
        await redis.hset(keys.LIMITS, "quick", "3")
        orders = {one[0]: one[1:] for one in (await listed(7))[4:]}
        assert orders == {
            "resume": ("redis-cli", ["b"], {}),
            "pace": ("redis-cli", ["quick"], {"rows_per_second": 50.0}),
            "limit": ("redis-cli", ["quick"], {"running": 3.0}),
        }
        await client.enqueue(quick.options(id="r1", delay=3600))
        assert await client.cancel("r1", "never") == ["never"]
        assert (await listed(8))[7] == ("cancel", "client", ["r1"], {})
        events = [fields for _, fields in await redis.xrange(keys.EVENTS) if fields[b"event"] == b"ordered"]
        assert {fields[b"order"] for fields in events} >= {b"pause", b"resume", b"pace", b"limit"}
    assert [one[0] for one in await listed(8)].count("pause") == 2
