"""Supervised tasks: work beside the jobs that has to go on as long as the worker does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from worker.errors import format_error

logger = logging.getLogger("longhaul.worker")

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
#: A task that lived so long was well: the next pause is the first again.
_WELL_SECONDS = 60.0
_CANCEL_AGAIN_SECONDS = 0.5
_LEAST_STEP_SECONDS = 0.5


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


async def end_tasks(tasks: Iterable[asyncio.Task[Any]], *, seconds: float) -> set[asyncio.Task[Any]]:
    """Cancel tasks and wait until they have ended, for a time.

    Args:
        tasks: what has to end.
        seconds: longest wait for all of them.

    Returns:
        Tasks that have not ended: they swallow their cancellation, or wait for something that cannot be cancelled.
    """
    deadline = asyncio.get_running_loop().time() + seconds
    pending = {task for task in tasks if not task.done()}
    while pending and (left := deadline - asyncio.get_running_loop().time()) > 0:
        for task in pending:
            task.cancel()
        # Repeated: `asyncio.wait_for` of CPython 3.11 loses a cancellation that comes together with the result.
        _, pending = await asyncio.wait(pending, timeout=min(left, _CANCEL_AGAIN_SECONDS))
    for task in tasks:
        if task.done() and not task.cancelled():
            task.exception()
    return pending


async def finish_steps(steps: Iterable[tuple[str, Coroutine[Any, Any, Any]]], *, seconds: float) -> None:
    """Do the steps of an end, one after the other; log a step that fails or takes too long, and go on.

    Args:
        steps: name and coroutine of each.
        seconds: time for all of them; each has a moment at least.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    for name, step in steps:
        task = asyncio.create_task(step, name=name)
        await asyncio.wait({task}, timeout=max(deadline - loop.time(), _LEAST_STEP_SECONDS))
        if not task.done():
            task.cancel()
            logger.error("shutdown step skipped step=%s: it took too long", name)
        elif not task.cancelled() and (error := task.exception()) is not None:
            logger.error("shutdown step failed step=%s error=%s", name, format_error(error))
