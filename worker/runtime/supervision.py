"""Supervised tasks: background work that has to run as long as the worker runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from worker.errors import format_error

logger = logging.getLogger("longhaul.worker")

_FIRST_PAUSE_SECONDS = 0.5
_LONGEST_PAUSE_SECONDS = 30.0
#: A task that ran for this long counts as healthy: the backoff starts again.
_WELL_SECONDS = 60.0
_CANCEL_AGAIN_SECONDS = 0.5
_LEAST_STEP_SECONDS = 0.5


async def supervise(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run work until cancelled. If it raises or returns, log an error and start it again, with backoff.

    Args:
        name: the name of the work, for the log.
        work: starts the work, which is not expected to return.
    """
    loop = asyncio.get_running_loop()
    pause = _FIRST_PAUSE_SECONDS
    while True:
        began = loop.time()
        error: BaseException | None = None
        try:
            await work()
        except Exception as raised:  # noqa: BLE001 - whatever the error, the work has to be restarted
            error = raised
        if loop.time() - began > _WELL_SECONDS:
            pause = _FIRST_PAUSE_SECONDS
        reason = "it returned" if error is None else format_error(error)
        logger.error("task ended task=%s restart_seconds=%.1f error=%s", name, pause, reason, exc_info=error)
        del error
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)


async def end_tasks(tasks: Iterable[asyncio.Task[Any]], *, seconds: float) -> set[asyncio.Task[Any]]:
    """Cancel tasks and wait until they have ended, up to a limit.

    Args:
        tasks: the tasks.
        seconds: longest wait for all of them, in seconds.

    Returns:
        The tasks that have not ended: they swallow the cancellation, or wait for something that cannot be cancelled.
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
    """Run the steps of a shutdown one after the other. Log a step that fails or takes too long, and continue.

    Args:
        steps: the name and coroutine of each step.
        seconds: time for all steps; each step has at least a moment.
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
