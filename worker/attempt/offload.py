"""Calls of plain functions outside of the event loop, in threads and processes."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from functools import cached_property
from typing import Any, Protocol

from worker.attempt.process_pool import ProcessPool
from worker.attempt.threads import ThreadPool
from worker.errors import JobInterrupted


class OffloadedCall(Protocol):
    """A call of a plain function in a thread or a process.

    Attributes:
        future: the outcome of the call.
    """

    future: Future[Any]

    def interrupt(self) -> None:
        """Raise `JobInterrupted` in the function, once. A call that has not begun does not begin."""

    async def abandon(self) -> str:
        """Stop waiting for a call that has not ended after its interruption.

        Returns:
            The outcome for the call, for the log.
        """


class JobPools:
    """The threads and processes of one worker for its plain functions; each pool is created at its first use.

    Args:
        max_threads: functions that run in threads at once.
        max_processes: functions that run in processes at once; None for the number of CPUs of this process.
    """

    def __init__(self, *, max_threads: int, max_processes: int | None) -> None:
        self._max_threads = max_threads
        self._max_processes = max_processes

    @cached_property
    def threads(self) -> ThreadPool:
        """The threads."""
        return ThreadPool(self._max_threads)

    @cached_property
    def processes(self) -> ProcessPool:
        """The processes."""
        return ProcessPool(self._max_processes)

    def close(self) -> None:
        """End all threads and processes that have no call. Blocks until the processes have ended."""
        if "processes" in vars(self):
            self.processes.close()
        if "threads" in vars(self):
            self.threads.close()


async def await_offloaded(call: OffloadedCall) -> Any:
    """Wait for the end of a call. A cancellation interrupts the call; the wait continues until the call ends.

    Returns:
        The result of the function, also after an interruption.

    Raises:
        CancelledError: The call was interrupted, and the function let the interruption pass.
        BaseException: The function's exception.
    """
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
