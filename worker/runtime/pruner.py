"""Pruning: deletes old records, so that neither server grows without bound.

Dead letters are deleted after `worker.dead_letter_ttl_days`, and ended runs of the ledger and the records of orders
after `worker.run_retention_days`. Abort commands of arq's clients for jobs that do not exist are deleted after a day,
because no other code removes them. One of all workers prunes once an hour, a few runs at a time.
"""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime

from redis.exceptions import WatchError

from worker.ledger import Ledger
from worker.ledger.records import DeletedRun
from worker.queue import keys
from worker.queue.dead_letters import forget_letters, prune_dead
from worker.queue.key_problems import KeyProblem
from worker.queue.store import QueueStore
from worker.settings import WorkerSettings

logger = logging.getLogger("longhaul.prune")

#: Pause between two checks whether pruning is due.
_ASK_SECONDS = 600.0
_PAUSE_SECONDS = 3600
_ABORTS_AT_ONCE = 500
_RUNS_AT_ONCE = 500
_ORDERS_AT_ONCE = 5_000
_DAY_SECONDS = 86_400.0
#: Lifetime of an abort command for a job that the queue does not have.
_ABORT_SECONDS = _DAY_SECONDS


class Pruner:
    """Deletes records that exceed their retention.

    Args:
        store: the queue.
        ledger: the durable record of runs; None without a database.
        rules: the retention settings.
    """

    def __init__(self, store: QueueStore, ledger: Ledger | None, rules: WorkerSettings) -> None:
        self._store = store
        self._ledger = ledger
        self._rules = rules
        self._next = 0.0
        self._walking = False
        self._last: DeletedRun | None = None

    async def look(self) -> None:
        """Prune one small part, if pruning is due."""
        if self._walking:
            await self._forget_runs()
            return
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _ASK_SECONDS
        redis, now = self._store.redis, datetime.now(UTC).isoformat(timespec="seconds")
        if not await redis.set(keys.PRUNED, now, nx=True, ex=_PAUSE_SECONDS):
            return
        problems: list[KeyProblem] = []
        await prune_dead(redis, self._rules.dead_letter_ttl_days * _DAY_SECONDS, problems)
        self._store.problems.report(problems)
        await self.forget_aborts()
        self._walking, self._last = self._ledger is not None and self._rules.run_retention_days > 0, None

    async def forget_aborts(self) -> int:
        """Delete abort commands that are a day old and whose jobs the queue does not have. Return their number."""
        before = (await self._store.time()).timestamp() - _ABORT_SECONDS
        forgotten = kept = 0
        while True:
            deleted, read = await self._forget_some_aborts(before * 1000, kept)
            forgotten, kept = forgotten + deleted, kept + read - deleted
            if read < _ABORTS_AT_ONCE:
                return forgotten

    async def _forget_some_aborts(self, before_ms: float, offset: int) -> tuple[int, int]:
        """Delete some abort commands. Return how many were deleted, and how many were looked at."""
        async with self._store.redis.pipeline(transaction=True) as pipeline:
            await pipeline.watch(keys.ABORT)  # abort if a client adds a command: its job may be new, too
            old: list[bytes] = await pipeline.zrangebyscore(
                keys.ABORT, "-inf", before_ms, start=offset, num=_ABORTS_AT_ONCE
            )
            beside = self._store.redis.pipeline(transaction=False)  # while a key is watched, a pipeline sends at once
            for raw in old:
                beside.exists(keys.JOB.encode() + raw)
            unknown = [raw for raw, exists in zip(old, await beside.execute(), strict=True) if not exists]
            if not unknown:
                return 0, len(old)
            pipeline.multi()  # type: ignore[no-untyped-call]
            pipeline.zrem(keys.ABORT, *unknown)
            try:
                await pipeline.execute()
            except WatchError:
                return 0, 0  # a client wrote meanwhile: prune next time
        return len(unknown), len(old)

    async def _forget_runs(self) -> None:
        assert self._ledger is not None  # noqa: S101
        keep = self._rules.run_retention_days * _DAY_SECONDS
        forgotten = await self._ledger.delete_finished(keep_seconds=keep, after=self._last, limit=_RUNS_AT_ONCE)
        dead = [run.id for run in forgotten if run.state == "dead"]
        if dead:
            await forget_letters(self._store.redis, dead)
        if forgotten:
            logger.info("runs pruned count=%d newest_end=%s", len(forgotten), forgotten[-1].finished_at)
            self._last = forgotten[-1]
        orders = await self._ledger.delete_orders(keep_seconds=keep, limit=_ORDERS_AT_ONCE)
        self._walking = len(forgotten) == _RUNS_AT_ONCE or orders == _ORDERS_AT_ONCE
