"""SyncClient with servers that are away, demoted or shared with a forked process."""

from __future__ import annotations

import asyncio
import os
from datetime import UTC, datetime
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.queue.sync_jobs import (
    add,
    answer_of,
    nightly,
    open_sync_client,  # noqa: F401  (the fixture `sync`)
)
from worker import (
    Client,
    ServerUnavailable,
    Settings,
    SyncClient,
    load_settings,
)
from worker.errors import SettingsError, UsageError


async def test_clients_without_a_database_url_say_so_and_read_the_rest(
    servers: Any, client: Client, redis: Redis
) -> None:
    settings = load_settings("/dev/null", environment={"REDIS_URL": servers.redis_url})
    await client.enqueue(add.options(id="a"), 1)
    await redis.hset("worker:cron", f"nightly {nightly.schedule[0]} @app", "1764129600000")
    async with Client(settings) as plain:
        with SyncClient(settings) as sync:
            for one in (plain, sync):
                for operation in (
                    lambda c: c.recorded_runs(),
                    lambda c: c.quarantined_rows(),
                    lambda c: c.dead_letters(ledger=True),
                    lambda c: c.retry_now("a"),
                    lambda c: c.delete_dead_letters("a"),
                    lambda c: c.retry_quarantined("a"),
                    lambda c: c.discard_quarantined(1),
                ):
                    with pytest.raises(SettingsError, match=r"database\.url is not set: set DATABASE_URL"):
                        await answer_of(operation, one)
                assert (await answer_of(lambda c: c.find_run("a"), one)).state == "waiting"
                [line] = await answer_of(lambda c: c.cron([nightly]), one)
                assert (line.last_at, line.state) == (datetime(2025, 11, 26, 4, tzinfo=UTC), "deleted")


async def test_a_sync_client_names_the_server_that_is_away_and_reconnects(fast: Settings, servers: Any) -> None:
    away = load_settings(
        "/dev/null", environment={"REDIS_URL": "redis://127.0.0.1:1/0", "DATABASE_URL": "postgresql://127.0.0.1:1/x"}
    )
    with SyncClient(away) as nowhere, pytest.raises(ServerUnavailable, match="Redis at redis://127"):
        nowhere.enqueue(add, 1)
    mixed = load_settings(
        "/dev/null", environment={"REDIS_URL": servers.redis_url, "DATABASE_URL": "postgresql://127.0.0.1:1/x"}
    )
    with SyncClient(mixed) as half:
        with pytest.raises(ServerUnavailable, match="PostgreSQL at"):
            await asyncio.to_thread(half.quarantined_rows)
        with pytest.raises(UsageError, match="use `Client` there"):
            half.quarantined_rows()
        killer = Redis.from_url(servers.redis_url)
        half.status()
        await killer.client_kill_filter(_type="normal", skipme=True)
        await killer.aclose()
        assert half.status().queue == "arq:queue"


async def test_a_sync_client_does_not_use_a_connection_again_whose_server_rejects_writes(
    sync: SyncClient, redis: Redis
) -> None:
    await redis.replicaof("127.0.0.1", 1)
    try:
        before = sync.redis.client_id()
        assert sync.redis.client_id() == before
        with pytest.raises(ServerUnavailable, match=r"READONLY.*it is a replica"):
            sync.enqueue(add, 1)
    finally:
        await redis.replicaof("NO", "ONE")
    assert sync.redis.client_id() != before
    assert sync.enqueue(add, 1).is_new


def test_a_forked_process_opens_connections_of_its_own(sync: SyncClient) -> None:
    mine = sync.redis.client_id()
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writable, f"{sync.redis.client_id()} {sync.enqueue(add, 1).is_new}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writable)
    with os.fdopen(readable) as answer:
        theirs, is_new = answer.read().split()
    assert (int(theirs) != mine, is_new) == (True, "True")
    assert sync.redis.client_id() == mine
