"""Makes parked runs due again: those whose pause was removed or that are cancelled, and those of a job known again."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable, Sequence
from itertools import islice

from worker.queue import keys
from worker.queue.store import QueueStore
from worker.runtime.operator_state import OperatorState

_IDS_AT_ONCE = 1000
#: Pauses that are handled at once: with one for each of 100,000 runs, other commands must not wait for all of them.
_PAUSES_AT_ONCE = 100
_UNPARK_SECONDS = 0.5


class Unparker:
    """Makes parked runs due. Any worker may do this, at the same time.

    Args:
        store: the queues.
        operator_state: the operator commands.
        served_queues: returns the queues that the worker serves now.
        job_names: the jobs of the worker.
    """

    def __init__(
        self,
        store: QueueStore,
        operator_state: OperatorState,
        served_queues: Callable[[], Sequence[str]],
        job_names: Sequence[str],
    ) -> None:
        self._store = store
        self._operators = operator_state
        self._served_queues = served_queues
        self._job_names = job_names
        self._names = {*job_names, keys.ALL}
        self._cancelled: frozenset[str] = frozenset()
        #: The set of pauses that was last seen, and those of them for which nothing is left to do.
        self._parked: frozenset[str] = frozenset()
        self._handled: set[str] = set()
        #: The commands for which nothing is left to do.
        self._done: tuple[frozenset[str], ...] = ()
        self._unpark_at = 0.0

    async def unpark_ordered(self) -> None:
        """Make runs due whose pause was removed, or that are cancelled."""
        operators = self._operators
        parked, paused, cancelled = commands = (operators.parked, operators.paused, operators.cancelled)
        if not parked or (self._done and all(map(operator.is_, commands, self._done))):
            return
        if parked is not self._parked:
            self._parked, self._handled = parked, set()
        removed = parked - paused - self._handled
        # A run that was paused by its id is alone under it.
        alone = (parked & paused & cancelled) - self._handled
        for order in islice(removed, _PAUSES_AT_ONCE):
            while await self._store.unpark(order):
                pass
            self._handled.add(order)
        for order in islice(alone, _PAUSES_AT_ONCE):
            await self._store.unpark(order, [order])
            self._handled.add(order)
        await self._unpark_cancelled((parked & paused) - cancelled, cancelled)
        self._done = commands if max(len(removed), len(alone)) <= _PAUSES_AT_ONCE else ()

    async def _unpark_cancelled(self, orders: frozenset[str], cancelled: frozenset[str]) -> None:
        """Make the runs due that were cancelled since the last call, so that they end."""
        new = sorted(cancelled - self._cancelled) if orders else []
        if len(orders) > _PAUSES_AT_ONCE:  # mostly ids of runs that are not cancelled: the other entries are names
            names = self._names.union(self._served_queues())
            orders = frozenset(order for order in orders if order in names or "?" in order)
        for order in orders if new else ():
            for first in range(0, len(new), _IDS_AT_ONCE):
                await self._store.unpark(order, new[first : first + _IDS_AT_ONCE])
        self._cancelled = cancelled

    async def unpark_known(self) -> None:
        """Make runs due that other workers have parked because they do not know the job.

        Such a worker may claim them first, and park them again: try that at most twice a second.
        """
        now = asyncio.get_running_loop().time()
        if not self._operators.are_jobs_awaited or now < self._unpark_at:
            return
        self._unpark_at = now + _UNPARK_SECONDS
        for queue in self._served_queues():
            for job in self._job_names:
                await self._store.unpark_known(job, queue)
