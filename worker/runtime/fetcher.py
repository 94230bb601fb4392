"""Claims due jobs and acknowledges ended ones: decides when to call Redis, for which queues, and for how many jobs.

One call of ack_and_claim.lua acknowledges ended jobs and claims jobs for free slots. Jobs that end during a call are
acknowledged by the next one. So a single job is acknowledged at once, and thousands of ended jobs share round trips.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from redis.exceptions import RedisError

from worker.queue.claims import Ack, Claim, FetchResult, Shares
from worker.queue.invalidations import InvalidationListener
from worker.queue.outage_log import OutageLog
from worker.queue.store import QueueStore
from worker.runtime.leases import Leases
from worker.runtime.operator_state import OperatorState
from worker.runtime.server_retry import WorkerState
from worker.settings import WorkerSettings

#: Longest wait for a notification; the delay if one was lost.
_LONGEST_SLEEP_SECONDS = 5.0
_LONGEST_PAUSE_SECONDS = 1.0
_FETCHING = "jobs cannot be claimed or acknowledged"


class QueueWeights:
    """The order in which queues are served, and the number of jobs to claim from each.

    If weighted, each queue gets its share of the free slots, at least one, and the first queue is drawn at random each
    time, so that no queue starves, even with a single slot. Slots that one queue does not need go to the others. If
    strict, the heaviest queue gets as many slots as it needs, and the others share the rest.

    Args:
        weights: the weight of each queue, by name.
        kind: weighted or strict.

    Attributes:
        is_strict: whether a heavier queue is always served first.
    """

    def __init__(self, weights: Mapping[str, int], kind: Literal["weighted", "strict"] = "weighted") -> None:
        self.queues = sorted(weights, key=lambda queue: -weights[queue])
        self._weights = dict(weights)
        self._total = sum(weights.values())
        self.is_strict = kind == "strict" or len(weights) == 1

    def shares(self, slots: int) -> list[tuple[str, int]]:
        """Return the number of jobs to claim from each queue for the free slots."""
        if self.is_strict:
            return [(queue, slots) for queue in self.queues]
        drawn = sorted(self.queues, key=lambda queue: random.random() ** (1 / self._weights[queue]), reverse=True)  # noqa: S311
        parts = [(queue, max(1, slots * self._weights[queue] // self._total)) for queue in drawn]
        return parts + [(queue, slots) for queue in drawn]


class PollTimer:
    """Waits until there may be a job to claim or to acknowledge.

    Args:
        listener: receives changes of keys in Redis.
        served_queues: returns the queues that the worker serves now.
        poll_interval_seconds: seconds between two polls if Redis does not send invalidations.

    Attributes:
        may_be_due: whether a job may be due.
    """

    def __init__(
        self,
        listener: InvalidationListener,
        served_queues: Callable[[], Sequence[str]],
        poll_interval_seconds: float,
    ) -> None:
        self.may_be_due = True
        self._listener = listener
        self._served_queues = served_queues
        self._poll_interval_seconds = poll_interval_seconds
        self._wake = asyncio.Event()
        #: The loop's time at which the first job of the queues is due; None if it has to be read from Redis.
        self._head_at: float | None = None
        self._changes = 0
        #: Consecutive fetches that claimed nothing although a job was due.
        self._empty_polls = 0

    def wake(self) -> None:
        """End the wait."""
        self._wake.set()

    def queues_changed(self) -> None:
        """Note that a queue was written, or that the served queues changed: the first due time may differ."""
        self._head_at = None
        self._changes += 1

    def fetched(self, claims: int) -> None:
        """Note the number of jobs that a fetch has claimed."""
        self._empty_polls = 0 if claims else self._empty_polls + 1

    async def wait(self, slots: int) -> None:
        """Wait until a job is due or has ended, or an operator has given a command.

        Args:
            slots: number of free slots; if 0, a due job does not end the wait.
        """
        self._wake.clear()
        if not self._listener.active:
            await self._pause(self._poll_interval_seconds)
            self.may_be_due = True
            return
        if not slots:
            await self._pause(_LONGEST_SLEEP_SECONDS)
            return
        loop = asyncio.get_running_loop()
        if self._head_at is None:
            seconds = await self._seconds_to_head()
            if seconds is None:
                return
            self._head_at = loop.time() + seconds
        seconds = self._head_at - loop.time()
        if seconds > 0:
            self._empty_polls = 0
            await self._pause(min(seconds, _LONGEST_SLEEP_SECONDS))
        elif self._empty_polls > 1:
            # A stock arq worker runs the job: there, a running job stays due. An invalidation ends the pause.
            await self._pause(self._poll_interval_seconds)
        if self._head_at is not None and self._head_at <= loop.time():
            self.may_be_due = True
        if not self._wake.is_set():
            self._head_at = None  # read it again: it has passed, and an invalidation may have been lost

    async def _seconds_to_head(self) -> float | None:
        """Return the seconds until the first job is due; None if that has just changed, or Redis is unavailable."""
        changes = self._changes
        try:
            heads = [("ZRANGE", queue, 0, 0, "WITHSCORES") for queue in self._served_queues()]
            [now, *found] = await self._listener.read(("TIME",), *heads)
        except RedisError:
            return None  # the listener has lost its connection: poll
        if changes != self._changes:
            return None
        # For a queue of a wrong type the answer is an error, which ack_and_claim.lua reports.
        first = min((float(head[1]) for head in found if head and isinstance(head, list)), default=math.inf)
        return first / 1000 - int(now[0]) - int(now[1]) / 1e6

    async def _pause(self, seconds: float) -> None:
        """Wait until `wake` is called, or until the timeout."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            pass


class AckBatcher:
    """Collects ended jobs for the next call.

    Args:
        store: the queues.
        leases: the leases of the jobs; they are dropped when Redis has the end.
        wake: called when there is an end to send.
    """

    def __init__(self, store: QueueStore, leases: Leases, wake: Callable[[], None]) -> None:
        self._store = store
        self._leases = leases
        self._wake = wake
        self._waiting: list[tuple[Ack, asyncio.Future[bool]]] = []
        self._sent: list[tuple[Ack, asyncio.Future[bool]]] = []

    @property
    def waiting(self) -> int:
        """Number of ended jobs that are not sent yet."""
        return len(self._waiting)

    def acknowledge(self, ack: Ack) -> asyncio.Future[bool]:
        """Acknowledge an ended job with the next call.

        Returns:
            After Redis has answered: whether this worker owned the job.
        """
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        if self._leases.is_replaced(ack.claim):  # lost, and claimed again by this worker: the lease is the new claim's
            done.set_result(False)
            return done
        self._waiting.append((ack, done))
        self._wake()
        return done

    def is_pending(self, run_id: str) -> bool:
        """Return whether the end of a job waits to be sent, or is being sent."""
        return any(ack.claim.run_id == run_id for acks in (self._sent, self._waiting) for ack, _ in acks)

    async def send(self, slots: int, shares: Shares, *, newest: int = 0) -> FetchResult:
        """Acknowledge ended jobs and claim due jobs; see `QueueStore.ack_and_claim`.

        Raises:
            RedisError: Redis did not answer. The ends are sent again with the next call, which is idempotent.
        """
        self._sent, self._waiting = self._waiting, []
        try:
            fetched = await self._store.ack_and_claim([ack for ack, _ in self._sent], slots, shares, newest=newest)
        except BaseException:
            self._sent, self._waiting = [], self._sent + self._waiting
            raise
        sent, self._sent = self._sent, []
        for ack, done in sent:
            run_id = ack.claim.run_id
            # Drop the leases before any other task runs: a renewal that is sent now would not find these jobs in Redis,
            # and would treat them as lost.
            self._leases.remove(ack.claim)
            if not done.done():
                done.set_result(run_id not in fetched.refused)
        return fetched

    def abandon(self, error: RedisError) -> None:
        """Give up the pending acknowledgements: those jobs are claimed again when their leases expire."""
        waiting, self._waiting = self._waiting, []
        for _, done in waiting:
            if not done.done():
                done.set_exception(error)


class Fetcher:
    """Decides when to call Redis, and calls it.

    Args:
        rules: the `worker` section of the settings: weights of the queues, intervals, lifetime of a lease.
        store: the queues.
        listener: receives changes of keys in Redis.
        operator_state: the operator commands, for paused queues.
        leases: the leases; they are renewed first after an outage of Redis.
        outage: logs outages of Redis.
        state: the state of the worker.
    """

    def __init__(
        self,
        rules: WorkerSettings,
        *,
        store: QueueStore,
        listener: InvalidationListener,
        operator_state: OperatorState,
        leases: Leases,
        outage: OutageLog,
        state: WorkerState,
    ) -> None:
        self._listener = listener
        self._operator_state = operator_state
        self._leases = leases
        self._outage = outage
        self._weights = weights = QueueWeights(rules.queues or {rules.queue: 1}, rules.queue_order)
        self._state = state
        self._lease_seconds = rules.lease_seconds
        self.timer = PollTimer(listener, self.served_queues, rules.poll_interval_seconds)
        self.acks = AckBatcher(store, leases, self.timer.wake)
        self._last_served = weights.queues
        self._failures = 0
        self._fruitless = 0
        self._away_since = 0.0
        #: The loop's time before which nothing is claimed, so that other workers renew their leases first.
        self._claims_at = 0.0

    @property
    def queues(self) -> list[str]:
        """All queues of this worker."""
        return self._weights.queues

    def served_queues(self) -> list[str]:
        """Return the queues that are not paused."""
        operators = self._operator_state
        if not operators.paused:
            return self._weights.queues
        return [queue for queue in self._weights.queues if not operators.is_queue_paused(queue)]

    def competing_queues(self, queue: str) -> list[str]:
        """Return the served queues whose jobs may get the slot of a job of this queue."""
        served = self.served_queues()
        return served if not self._weights.is_strict or queue not in served else served[: served.index(queue) + 1]

    def check_served_queues(self) -> None:
        """Update the served queues after an operator has paused or resumed a queue."""
        served = self.served_queues()
        if served != self._last_served:
            self._last_served = served
            self.timer.may_be_due = True
            self.timer.queues_changed()
            self.timer.wake()

    def claimable(self, free_slots: int) -> int:
        """Return the number of jobs to claim now, at most `slots`."""
        if asyncio.get_running_loop().time() < self._claims_at or not self.served_queues():
            return 0
        return max(0, free_slots + self.acks.waiting)

    @property
    def is_failing(self) -> bool:
        """Whether the last call of Redis failed."""
        return self._failures > 0

    def has_work(self, slots: int) -> bool:
        """Return whether a call of Redis is needed: there are ends to send, or jobs may be due for the free slots."""
        return bool(self._failures or self.acks.waiting or (slots and self.timer.may_be_due))

    async def fetch(self, slots: int) -> list[Claim]:
        """Acknowledge ended jobs and claim up to `slots` due jobs. If Redis does not answer, pause."""
        timer = self.timer
        if self._failures:
            slots = 0
        timer.may_be_due = timer.may_be_due and not slots
        try:
            fetched = await self.acks.send(slots, self._shares(slots), newest=self._newest_slots())
        except RedisError as error:
            await self._pause_after(error)
            return []
        if self._failures:
            await self._recover()
        timer.fetched(len(fetched.claims))
        if fetched.claims and fetched.ordered:
            await self._operator_state.refresh_claimed([claim.run_id for claim in fetched.claims])
        if slots and len(fetched.claims) >= slots:
            timer.may_be_due = True
        return fetched.claims

    def _newest_slots(self) -> int:
        """Return how many of the next claims are to be the newest due jobs.

        While the front of a queue holds jobs that cannot run here (unknown, paused or without a payload), one slot
        goes to the jobs at its end. So however many there are, other jobs start at once.
        """
        fruitless, self._fruitless = self._state.fruitless_claims - self._fruitless, self._state.fruitless_claims
        return 1 if fruitless else 0

    def _shares(self, slots: int) -> list[tuple[str, int]]:
        shares = self._weights.shares(slots)
        if not self._operator_state.paused:
            return shares
        served = self.served_queues()
        return [(queue, most) for queue, most in shares if queue in served]

    async def _pause_after(self, error: RedisError) -> None:
        self._outage.failed(_FETCHING, error)
        if not self._failures:
            self._away_since = asyncio.get_running_loop().time()
        self._failures += 1
        self.timer.may_be_due = True
        if self._state.is_shutdown_forced:
            self.acks.abandon(error)
        # No event ends this pause: Redis must not be called more often during an outage.
        await asyncio.sleep(min(_LONGEST_PAUSE_SECONDS, 0.1 * 2 ** min(self._failures, 10)))

    async def _recover(self) -> None:
        """Resume after an outage. Leases of live workers may have expired: let them be renewed before claiming."""
        self._failures = 0
        loop = asyncio.get_running_loop()
        self._outage.answered(_FETCHING)
        self._leases.renew_now()
        await self._listener.reopen()
        if loop.time() - self._away_since > self._lease_seconds / 3:
            patience = self._lease_seconds / 2
            self._claims_at = loop.time() + patience
            loop.call_later(patience, self.timer.wake)
