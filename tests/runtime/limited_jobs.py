"""Jobs with limits, and what they record."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from worker import JobContext, job

seen: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    """Clear the records of the previous test."""
    seen.clear()
    seen.update(now=0, most=0, by={}, gate=asyncio.Event(), tries=[], moments=[])


@job(unique=True)
async def alone(ctx: JobContext, n: int = 0, note: str = "") -> int:
    """One with the same arguments."""
    await seen["gate"].wait()
    return n
