"""Jobs that wait for a gate, and what they record."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import select

from tests.models import Author
from worker import JobContext, job

tries: list[int] = []


gate: dict[str, asyncio.Event] = {}


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Clear the records of the previous test."""
    tries.clear()
    gate.clear()
    gate["go"] = asyncio.Event()
    gate["begun"] = asyncio.Event()


@job
async def wait_for_go(ctx: JobContext) -> str:
    """Wait, outside of any loop."""
    tries.append(ctx.attempt)
    gate["begun"].set()
    await gate["go"].wait()
    return "went"


@job(timeout=1)
async def walk(ctx: JobContext) -> int:
    """Walk the authors, a gate between the first batch and the others."""
    async for batch in ctx.chunks(select(Author), size=10):
        for author in batch:
            author.seen += 1
        if batch.number > 1:
            gate["begun"].set()
            await gate["go"].wait()
    return ctx.rows_done


async def is_logged(caplog: pytest.LogCaptureFixture, words: str) -> bool:
    return words in caplog.text
