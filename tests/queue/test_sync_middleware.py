"""Middleware of SyncClient."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.queue.sync_jobs import (
    add,
    open_sync_client,  # noqa: F401  (the fixture `sync`)
)
from worker import (
    Middleware,
    Settings,
    SyncClient,
)
from worker.errors import UsageError


class AddHeader(Middleware):
    """Adds a header, and awaits nothing but the enqueueing."""

    async def enqueue(self, call: Any, proceed: Any) -> Any:
        """Add the header."""
        call.headers["from"] = "hook"
        return await proceed()


class AskElsewhere(Middleware):
    """Awaits something that only an event loop delivers."""

    async def enqueue(self, call: Any, proceed: Any) -> Any:
        """Sleep."""
        await asyncio.sleep(0.001)
        return await proceed()


async def test_hooks_run_in_a_sync_client_unless_they_wait_for_something_else(fast: Settings, redis: Redis) -> None:
    with SyncClient(fast, middleware=[AddHeader()]) as sync:
        run = await asyncio.to_thread(sync.enqueue, add, 1)
        assert b'"h":{"from":"hook"}' in (await redis.get(f"arq:job:{run.id}") or b"")
    with SyncClient(fast, middleware=[AskElsewhere()]) as sync:
        with pytest.raises(UsageError, match=r"awaits something other than `proceed\(\)`"):
            await asyncio.to_thread(sync.enqueue, add, 1)
        with pytest.raises(UsageError, match="no event loop"):
            sync.enqueue(add, 1)  # where another event loop runs
    assert await redis.zcard("arq:queue") == 1
