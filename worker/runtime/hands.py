"""Helper runs of walks with several hands, in the queue."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from redis.exceptions import RedisError

from worker.errors import LonghaulError, format_error
from worker.job.propagation import current_attempt, with_followed_span
from worker.queue import keys
from worker.queue.claims import Claim
from worker.queue.payload import HandMark, Payload
from worker.queue.store import QueueStore

logger = logging.getLogger("longhaul.jobs")

#: What a helper does not take over from the payload of the run.
_OF_THE_RUN_ALONE: dict[str, Any] = {
    "pickled": False,
    "in_ledger": False,
    "attempt": None,
    "until_ms": 0,
    "deadline_ms": 0,
    "next_calls": (),
    "group": None,
}


class HandRuns:
    """Enqueues the helper runs of a worker's walks, and looks at their leases.

    Args:
        store: the queue.
    """

    def __init__(self, store: QueueStore) -> None:
        self._store = store

    async def enqueue(
        self, claim: Claim, payload: Payload, step: str, numbers: Sequence[int], fence: int, *, priority: int
    ) -> None:
        """Enqueue helpers. If Redis does not answer, the run walks alone.

        Args:
            claim: the run whose walk it is.
            payload: its payload.
            step: the step of the walk.
            numbers: the numbers of the hands.
            fence: the fence of the run's attempt.
            priority: the priority of the job.
        """
        attempt = current_attempt.get()
        headers = with_followed_span(payload.headers, "")
        if attempt is not None and attempt.span:
            headers["traceparent"] = attempt.span  # the attempts of helpers are children of this one
        for number in numbers:
            mark = HandMark(claim.run_id, step, number, fence)
            # Conditions such as "older than" depend on the time, which must be the same in all hands.
            enqueued_ms = payload.enqueued_ms or int(claim.due_ms)
            helper = payload._replace(hand=mark, enqueued_ms=enqueued_ms, headers=headers, **_OF_THE_RUN_ALONE)
            try:
                await self._store.enqueue(mark.id, helper.to_json(), queue=claim.queue, priority=priority)
            except (RedisError, OSError, LonghaulError) as error:
                words = "helper not enqueued run=%s helper=%s error=%s: the walk continues without it"
                logger.warning(words, claim.run_id, mark.id, format_error(error))

    async def is_alive(self, run_id: str) -> bool:
        """Return whether a worker holds the lease of a run. True if Redis does not answer."""
        try:
            return bool(await self._store.redis.exists(keys.IN_PROGRESS + run_id))
        except (RedisError, OSError):
            return True
