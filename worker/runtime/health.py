"""The health line of a worker, under arq's key and in arq's format, for existing monitoring of arq."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from redis.asyncio import Redis

from worker.runtime.outcome import Abandoned, Failed, Outcome, Released, Snoozed, Succeeded


@dataclass
class Counters:
    """Counts of a worker's executions, by outcome.

    Attributes:
        complete: jobs that succeeded.
        failed: jobs that ended dead or cancelled.
        retried: executions that returned to the queue.
    """

    complete: int = 0
    failed: int = 0
    retried: int = 0

    def count(self, outcome: Outcome) -> None:
        """Count an execution that has ended."""
        match outcome:
            case Succeeded():
                self.complete += 1
            case Released() | Snoozed():
                self.retried += 1
            case Failed() if outcome.decision.again:
                self.retried += 1
            case Abandoned():
                self.count(outcome.outcome)
            case _:
                self.failed += 1


class HealthRecorder:
    """Writes the health line at an interval. Its key expires soon after the worker has died.

    Args:
        redis: connection.
        queue: the queue of the worker.
        counters: the counts of ended executions.
        running: returns the number of running jobs.
        interval_seconds: seconds between two writes.
    """

    def __init__(
        self,
        redis: Redis,
        queue: str,
        counters: Counters,
        running: Callable[[], int],
        *,
        interval_seconds: float = 10.0,
    ) -> None:
        self._redis = redis
        self._queue = queue
        self._counters = counters
        self._running = running
        self.interval_seconds = interval_seconds

    @property
    def key(self) -> str:
        """The key, by arq's rule."""
        return f"{self._queue}:health-check"

    async def record(self) -> None:
        """Write the line."""
        counters = self._counters
        queued = await self._redis.zcard(self._queue)
        line = (
            f"{datetime.now():%b-%d %H:%M:%S} j_complete={counters.complete} j_failed={counters.failed} "
            f"j_retried={counters.retried} j_ongoing={self._running()} queued={queued}"
        )
        await self._redis.psetex(self.key, round((self.interval_seconds + 1) * 1000), line)

    async def clear(self) -> None:
        """Delete the line when the worker stops."""
        await self._redis.delete(self.key)
