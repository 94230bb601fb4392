"""Reads that many requests share: 200 open pages cost the servers as much as one."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, TypeVar, cast

from worker.cancellation import cancel_and_wait

T = TypeVar("T")

_MOST_READS = 256


class SharedReads:
    """Remembers what was read for a moment. Requests that ask for the same at once wait for one read.

    Args:
        seconds: age up to which a read is shared.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._reads: OrderedDict[Hashable, tuple[float, asyncio.Task[Any]]] = OrderedDict()

    async def get(self, key: Hashable, read: Callable[[], Awaitable[T]], *, seconds: float | None = None) -> T:
        """Return what was read under a key, or read it.

        Args:
            key: name of the read, with its arguments.
            read: reads it.
            seconds: age up to which it is shared, instead of that of all reads.

        Raises:
            Exception: the error of the read, for all that wait for it. It is not remembered.
        """
        began, task = self._reads.get(key, (0.0, None))
        age = time.monotonic() - began
        if task is None or (task.done() and (age > (seconds or self._seconds) or _has_failed(task))):
            task = asyncio.ensure_future(_await(read))
            self._reads[key] = (time.monotonic(), task)
            self._reads.move_to_end(key)
            self._forget_old()
        # A caller that is cancelled must not cancel the read of the others.
        return cast(T, await asyncio.shield(task))

    def forget(self) -> None:
        """Forget all reads: an order has changed what they would return."""
        self._reads.clear()

    def _forget_old(self) -> None:
        while len(self._reads) > _MOST_READS:
            self._reads.popitem(last=False)

    async def close(self) -> None:
        """Cancel the reads that have not ended."""
        tasks = [task for _, task in self._reads.values()]
        self._reads.clear()
        await cancel_and_wait(*tasks)


async def _await(read: Callable[[], Awaitable[T]]) -> T:
    return await read()


def _has_failed(task: asyncio.Task[Any]) -> bool:
    return task.cancelled() or task.exception() is not None
