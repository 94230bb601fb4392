"""Jobs that both clients enqueue."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from worker import (
    Client,
    JobContext,
    Settings,
    SyncClient,
    job,
)

Operation = Callable[[Any], Any]


@job
async def add(ctx: JobContext, a: int, b: int = 2) -> int:
    """Return a sum."""
    return a + b


@job(cron="0 3 * * *", timezone="Europe/London")
async def nightly(ctx: JobContext) -> None:
    """Do nothing."""


@pytest.fixture(name="sync")
def open_sync_client(fast: Settings) -> Any:
    """A client without an event loop."""
    with SyncClient(fast) as opened:
        yield opened


async def answer_of(operation: Operation, client: Any) -> Any:
    """Run an operation with either client."""
    if isinstance(client, Client):
        return await operation(client)
    return await asyncio.to_thread(operation, client)
