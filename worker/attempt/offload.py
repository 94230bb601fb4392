"""What a job does outside of the event loop, in a thread or a process: its outcome, its interruption, its end."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol

from worker.errors import JobInterrupted

if TYPE_CHECKING:
    from worker.attempt.attempt import Attempt


class OffloadedCall(Protocol):
    """A call of a plain function, in a thread or a process.

    Attributes:
        future: its outcome.
    """

    future: Future[Any]

    def interrupt(self) -> None:
        """Raise `JobInterrupted` in the function, once; one that has not begun does not begin."""

    async def give_up(self) -> str:
        """Wait for it no more: it has not ended when it was interrupted. Returns what became of it, in sentences."""


async def await_offloaded(call: OffloadedCall, host: Attempt) -> Any:
    """Wait for a call that was started. A cancellation is passed on to it, and its end is waited for.

    Args:
        call: what was started.
        host: the job's; it gives the call up when the job is.

    Returns:
        What the function returned, also after it was interrupted.

    Raises:
        CancelledError: it was interrupted, and has let that pass.
        BaseException: what the function raised.
    """
    host.outside.add(call)
    host.home = asyncio.get_running_loop()
    try:
        waiting = asyncio.wrap_future(call.future)
        cancelled: asyncio.CancelledError | None = None
        while not waiting.done():
            try:
                await asyncio.wait({waiting})
            except asyncio.CancelledError as error:
                call.interrupt()
                cancelled = error
        if not waiting.cancelled() and isinstance(waiting.exception(), JobInterrupted):
            raise cancelled or asyncio.CancelledError()
        return waiting.result()
    finally:
        host.outside.discard(call)
