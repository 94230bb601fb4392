"""Waiting for what a test expects by looking at it, never by sleeping for as long as it might take."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from worker import Run

T = TypeVar("T")


async def until(look: Callable[[], Awaitable[T]], seconds: float = 60.0) -> T:
    """Poll until `look` returns something true; fail after so many seconds."""
    async with asyncio.timeout(seconds):
        while True:
            seen = await look()
            if seen:
                return seen
            await asyncio.sleep(0.01)


async def until_true(look: Callable[[], object], seconds: float = 60.0) -> None:
    """Poll until a plain function returns something true; fail after so many seconds."""

    async def looked() -> bool:
        return bool(look())

    await until(looked, seconds)


async def until_status(run: Run[Any], status: str) -> None:
    """Wait until a run has that status."""

    async def has_status() -> bool:
        return await run.status() == status

    await until(has_status)
