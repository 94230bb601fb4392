"""AckBatcher: what a worker sends to its queues, as few times as possible and as soon as there is something to send.

Jobs that have ended and slots that have become free go in one call (ack_and_claim.lua). While it is on its way, what
ends next gathers for the one after: so a lone job's end is told at once, and a thousand a moment share their round
trips.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from redis.exceptions import RedisError

from worker.queue.store import Ack, FetchResult, QueueStore, Shares


class AckBatcher:
    """The ends of jobs that are to be told, and the call that tells them.

    Args:
        store: the queues.
        wake: called when there is something to tell.
    """

    def __init__(self, store: QueueStore, wake: Callable[[], None]) -> None:
        self._store = store
        self._wake = wake
        self._waiting: list[tuple[Ack, asyncio.Future[bool]]] = []

    @property
    def waiting(self) -> int:
        """Number of jobs whose end is to be told."""
        return len(self._waiting)

    def end(self, ended: Ack) -> asyncio.Future[bool]:
        """Tell the end of a job with the next turn.

        Returns:
            Whether it was this worker's to tell, when Redis has it.
        """
        told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((ended, told))
        self._wake()
        return told

    async def take(self, slots: int, shares: Shares) -> FetchResult:
        """Tell what has ended, and claim what is due; see `QueueStore.turn`.

        Raises:
            RedisError: it did not answer. What has ended is told with the next turn: that is idempotent.
        """
        sent, self._waiting = self._waiting, []
        try:
            turned = await self._store.turn([ended for ended, _ in sent], slots, shares)
        except BaseException:
            self._waiting = sent + self._waiting
            raise
        for ended, told in sent:
            if not told.done():
                told.set_result(ended.claim.run_id not in turned.refused)
        return turned

    def give_up(self, error: RedisError) -> None:
        """Leave what could not be told to the leases of its jobs."""
        sent, self._waiting = self._waiting, []
        for _, told in sent:
            if not told.done():
                told.set_exception(error)
