"""Controls of attempts, in place of a worker's."""

from __future__ import annotations

from typing import Any

from worker.attempt.control import NoControl


class StopsAfter(NoControl):
    """A control that drains after a number of batches."""

    draining = False

    def __init__(self, batches: int) -> None:
        self._batches = batches

    async def order(self, run_id: str, job: str) -> None:
        return None

    def rows_per_second(self, run_id: str, job: str) -> None:
        return None

    def throttled(self, wait: Any, since: Any) -> None:
        pass

    def report(self, progress: Any, rows: int) -> None:
        self.draining = progress.batches >= self._batches
