"""Tasks under cancellation: operations that must complete, and tasks that must end."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

#: Seconds for which a cancelled caller still waits for an operation that must complete.
COMPLETION_SECONDS = 30.0

_REPEAT_SECONDS = 0.5


async def run_to_completion(operation: Coroutine[Any, Any, T], *, seconds: float = COMPLETION_SECONDS) -> T:
    """Run an operation to its end even if this task is cancelled meanwhile, and raise the cancellation afterwards.

    asyncio cancels at any `await`, also in the middle of COMMIT or while a connection is returned to its pool. An
    operation that is left half done leaks the connection (SQLAlchemy #8145, #12077, #12099).

    Args:
        operation: COMMIT, ROLLBACK, close: a step that must not be interrupted.
        seconds: how long the operation may still take after a cancellation. After that it is cancelled too.

    Returns:
        The result of the operation.

    Raises:
        asyncio.CancelledError: This task was cancelled while the operation ran.
        BaseException: The operation failed and this task was not cancelled.
    """
    task = asyncio.ensure_future(operation)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task}, timeout=seconds if cancelled else None)
            if cancelled and not task.done():
                task.cancel()
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is None:
        return task.result()
    if not task.cancelled():
        task.exception()  # marks the exception as retrieved; the caller gets the cancellation
    raise cancelled


async def cancel_and_wait(*tasks: asyncio.Task[Any]) -> None:
    """Cancel tasks and wait until they have ended, whatever their results.

    `asyncio.wait_for` of CPython 3.11 loses a cancellation that arrives together with the awaited result, so the
    cancellation is repeated until the tasks end.
    """
    pending = {task for task in tasks if not task.done()}
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_REPEAT_SECONDS)
    for task in tasks:
        if not task.cancelled():
            task.exception()


def is_current(task: asyncio.Task[Any] | None) -> bool:
    """Return whether the running code is that of a task. A coroutine that is closed from outside runs in none."""
    try:
        return task is not None and asyncio.current_task() is task
    except RuntimeError:  # no event loop runs
        return False
