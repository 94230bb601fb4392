"""Plain functions as jobs: in threads, so that they do not hold the event loop."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.context import JobContext


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="job")


def in_thread(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Return an async function that runs a plain one in a thread of this process's pool, `worker.threads` at a time.

    A cancellation, also that of a timeout, ends the waiting for it; the thread goes on to its end, and its result is
    dropped. The function gets the job's context for what it says (`ctx.run_id`, `ctx.settings`): scopes and loops are
    for the event loop.
    """

    @functools.wraps(function)
    async def wrapper(ctx: JobContext, *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(contextvars.copy_context().run, function, ctx, *args, **kwargs)
        pool = _pool(ctx.settings.worker.threads)
        return await asyncio.get_running_loop().run_in_executor(pool, call)

    return wrapper
