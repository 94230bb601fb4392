"""Supervised tasks: work beside the jobs that has to go on as long as the worker does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from worker.errors import format_error

logger = logging.getLogger("longhaul.worker")

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
#: A task that lived so long was well: the next pause is the first again.
_WELL_SECONDS = 60.0


async def supervise(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Do work until cancelled. If it raises or returns, log that as an error and start it again, with backoff.

    Args:
        name: of the work, for the log.
        work: starts it; it is not expected to return.
    """
    loop = asyncio.get_running_loop()
    pause = _FIRST_PAUSE_SECONDS
    while True:
        began = loop.time()
        error: BaseException | None = None
        try:
            await work()
        except Exception as raised:  # noqa: BLE001 - whatever it was, the work has to go on
            error = raised
        if loop.time() - began > _WELL_SECONDS:
            pause = _FIRST_PAUSE_SECONDS
        reason = "it returned" if error is None else format_error(error)
        logger.error("task ended task=%s restart_seconds=%.1f error=%s", name, pause, reason, exc_info=error)
        del error
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
