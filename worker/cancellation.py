"""Ending tasks for certain."""

from __future__ import annotations

import asyncio
from typing import Any

_AGAIN_SECONDS = 0.5


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel a task, and wait until it is over, whatever it ended with.

    `asyncio.wait_for` of CPython 3.11, and drivers that use it, can swallow a cancellation that comes together
    with their answer: so it is said again until it is heard.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=_AGAIN_SECONDS)
    if not task.cancelled():
        task.exception()
