"""Compares a model of the queue with a real Valkey: no job is lost or has two owners, and order and limits are kept.

Two workers run the scripts of workers and clients; the test ends their leases.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, strategies
from hypothesis import settings as rules
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis.asyncio import Redis

from worker import Settings
from worker.queue import keys
from worker.queue.claims import Ack, Claim
from worker.queue.scripts import script
from worker.queue.store import QueueStore

QUEUE = "arq:queue"
OWNERS = ("north:1", "south:2")
LEASE_MS = 3_600_000
IDS = strategies.sampled_from([f"r{n}" for n in range(6)])
OWNER = strategies.sampled_from(OWNERS)
LEVELS = strategies.sampled_from([0, 0, 4, 9])
LIMIT = 3


class QueueModel(RuleBasedStateMachine):
    """The expected state of each job: its place, its owner, and its outcome."""

    url: str
    runner: asyncio.Runner

    def __init__(self) -> None:
        super().__init__()
        self.redis: Redis = self.wait(self._connect())
        self.stores = {owner: QueueStore(self.redis, owner, LEASE_MS / 1000) for owner in OWNERS}
        self.renew = self.redis.register_script(script("renew"))
        self.waiting: list[str] = []  # in the order in which they are due
        self.deferred: set[str] = set()
        self.held: dict[str, tuple[str, Claim]] = {}  # whose lease lives: owner, claim
        self.stale: list[tuple[str, Claim]] = []  # claims whose owners have not noticed the loss
        self.expired: set[str] = set()  # waiting jobs whose lease has expired
        self.ended: dict[str, str] = {}  # by whom

        self.levels: dict[str, int] = {}  # the priority of each
        self.counted: set[str] = set()  # jobs that Redis counts under the limit of the queue
        for store in self.stores.values():
            store.claims._queue_limits = {QUEUE: LIMIT}

    async def _connect(self) -> Redis:
        redis = Redis.from_url(self.url)
        await redis.flushall()
        return redis

    def wait(self, operation: Any) -> Any:
        return self.runner.run(operation)

    def teardown(self) -> None:
        self.wait(self.redis.aclose())

    @property
    def known(self) -> set[str]:
        return {*self.waiting, *self.deferred, *self.held, *self.ended}

    @initialize()
    def fill(self) -> None:
        """Some jobs wait, and north has two of them."""
        self.enqueue_many(["r0", "r1", "r2", "r3"], 0)
        self.ack_and_claim(OWNERS[0], 2, 0.0)

    @rule(run_id=IDS, later=strategies.booleans(), level=LEVELS)
    def enqueue(self, run_id: str, later: bool, level: int) -> None:
        store = self.stores[OWNERS[0]]
        put = self.wait(store.enqueue(run_id, "{}", queue=QUEUE, delay=3600 if later else 0, priority=level))
        assert put.is_new == (run_id not in self.known)
        if put.is_new:
            self.levels[run_id] = level
            self.deferred.add(run_id) if later else self._wait_in_line(run_id)

    @rule(run_ids=strategies.lists(IDS, unique=True), level=LEVELS)
    def enqueue_many(self, run_ids: list[str], level: int) -> None:
        jobs = [(run_id, "{}") for run_id in run_ids]
        known = self.wait(self.stores[OWNERS[0]].enqueue_many(jobs, queue=QUEUE, priority=level))
        assert {run_ids[place] for place in known} == set(run_ids) & self.known
        for run_id in run_ids:
            if run_id not in self.known:
                self.levels[run_id] = level
                self._wait_in_line(run_id)

    def _wait_in_line(self, run_id: str, *, ran: bool = False) -> None:
        """It is due after all that are due, milliseconds apart: as the test's clock has it."""
        due = 1_000_000 + self._tick() + (0.5 if ran else 0)  # as ack_and_claim.lua marks a running job
        self.waiting.append(run_id)
        self.wait(self.redis.zadd(QUEUE, {run_id: due}))
        self.wait(self.redis.zadd(keys.priority_line(QUEUE, self.levels[run_id]), {run_id: due}, xx=True))

    def _may_run(self, wanted: int) -> list[str]:
        """Return the jobs of the next claim: by priority, equal ones by due time, and within the limit."""
        if len(self.counted) + wanted > LIMIT:
            self.counted &= self.held.keys()
        order = sorted(self.waiting, key=lambda run_id: -self.levels[run_id])
        return order[: min(wanted, max(0, LIMIT - len(self.counted)))]

    @rule(owner=OWNER, slots=strategies.integers(0, 4), share=strategies.floats(0, 1))
    def ack_and_claim(self, owner: str, slots: int, share: float) -> None:
        """A worker ends some of its jobs, and claims due ones."""
        mine = [claim for holder, claim in self.held.values() if holder == owner]
        ending = mine[: round(share * len(mine))]
        late = [claim for holder, claim in self.stale if holder == owner]
        sent = [Ack(claim, owner.encode(), 60_000) for claim in (*ending, *late)]
        turned = self.wait(self.stores[owner].ack_and_claim(sent, slots, [(QUEUE, slots)]))
        for claim in ending:
            del self.held[claim.run_id]
            self.counted.discard(claim.run_id)
            self.ended[claim.run_id] = owner
        for claim in late:
            # A job that was not claimed since counts as held; a job that another worker owns or has ended is refused.
            holder = self.held.get(claim.run_id)
            taken = (holder is not None and holder[0] != owner) or self.ended.get(claim.run_id, owner) != owner
            assert (claim.run_id in turned.refused) == taken
            if not taken:
                self.held.pop(claim.run_id, None)
                self._leave_line(claim.run_id)
                self.counted.discard(claim.run_id)
                self.ended[claim.run_id] = owner
        self.stale = [each for each in self.stale if each[0] != owner]
        taken_ids = [claim.run_id for claim in turned.claims]
        assert taken_ids == self._may_run(slots)
        self.counted.update(taken_ids)
        for claim in turned.claims:
            assert claim.expired == (claim.run_id in self.expired)
            self._leave_line(claim.run_id)
            self.held[claim.run_id] = (owner, claim)

    def _leave_line(self, run_id: str) -> None:
        if run_id in self.waiting:
            self.waiting.remove(run_id)
        self.deferred.discard(run_id)
        self.expired.discard(run_id)

    def _tick(self) -> int:
        self._now = getattr(self, "_now", 0) + 1
        return self._now

    @precondition(lambda self: self.held)
    @rule(data=strategies.data(), later=strategies.booleans())
    def requeue(self, data: Any, later: bool) -> None:
        run_id = data.draw(strategies.sampled_from(sorted(self.held)))
        owner, claim = self.held.pop(run_id)
        assert self.wait(self.stores[owner].requeue(claim, delay=3600 if later else 0, counts=True))
        if later:
            self.deferred.add(run_id)
        else:
            self._wait_in_line(run_id)

    @precondition(lambda self: self.held)
    @rule(data=strategies.data())
    def worker_dies_or_freezes(self, data: Any) -> None:
        """A lease ends: the job is due, and its owner, if alive, has not noticed."""
        run_id = data.draw(strategies.sampled_from(sorted(self.held)))
        owner, claim = self.held.pop(run_id)
        self.wait(self.redis.delete(keys.IN_PROGRESS + run_id))
        self._wait_in_line(run_id, ran=True)
        self.expired.add(run_id)
        self.stale.append((owner, claim))

    @precondition(lambda self: self.stale)
    @rule()
    def stale_requeue(self) -> None:
        owner, claim = self.stale.pop()
        now = self.held.get(claim.run_id)
        done = self.wait(self.stores[owner].requeue(claim, delay=3600, counts=False))
        assert done == ((now is None or now[0] == owner) and claim.run_id not in self.ended)
        if done:
            self.held.pop(claim.run_id, None)
            self._leave_line(claim.run_id)
            self.deferred.add(claim.run_id)

    @rule(owner=OWNER)
    def renew_leases(self, owner: str) -> None:
        mine = [run_id for run_id, (holder, _) in self.held.items() if holder == owner]
        lost = {claim.run_id: claim for holder, claim in self.stale if holder == owner and claim.run_id not in mine}
        asked: list[Any] = [owner, LEASE_MS, keys.IN_PROGRESS, keys.RESULT]
        for run_id in (*mine, *lost):
            asked += (run_id, 1)
        answers = self.wait(self.renew(keys=[QUEUE], args=asked))
        for run_id, answer in zip((*mine, *lost), answers, strict=True):
            if run_id in mine:
                assert answer == b"held"
            elif run_id in self.expired:  # not claimed since: this worker owns it again
                assert answer == b"held"
                self._leave_line(run_id)
                self.held[run_id] = (owner, lost[run_id])
                self.stale.remove((owner, lost[run_id]))
            else:
                assert answer in (b"lost", b"gone")

    @rule(run_id=IDS)
    def cancel(self, run_id: str) -> None:
        ordered = self.wait(self.stores[OWNERS[0]].cancel(run_id, queue=QUEUE))
        assert ordered == (run_id in self.known - self.ended.keys())
        self.wait(self.redis.delete(keys.CANCELLED))
        if run_id in self.deferred:  # it is due now, to end now
            self._leave_line(run_id)
            self._wait_in_line(run_id)

    @rule(run_id=IDS)
    def forget_a_result(self, run_id: str) -> None:
        if run_id in self.ended:
            self.wait(self.redis.delete(keys.RESULT + run_id))
            del self.ended[run_id]
            self.stale = [each for each in self.stale if each[1].run_id != run_id]

    @invariant()
    def no_job_is_lost_and_none_has_two_owners(self) -> None:
        there = {raw.decode() for raw in self.wait(self.redis.zrange(QUEUE, 0, -1))}
        assert there == {*self.waiting, *self.deferred, *self.held}
        for run_id in there:
            assert self.wait(self.redis.exists(keys.JOB + run_id)) == 1
        leases = {
            raw.decode().removeprefix(keys.IN_PROGRESS): self.wait(self.redis.get(raw)).decode()
            for raw in self.wait(self.redis.keys(keys.IN_PROGRESS + "*"))
        }
        assert leases == {run_id: owner for run_id, (owner, _) in self.held.items()}

    @invariant()
    def each_stands_in_the_line_of_its_priority(self) -> None:
        there = {*self.waiting, *self.deferred, *self.held}
        for level in (4, 9):
            line = {raw.decode() for raw in self.wait(self.redis.zrange(keys.priority_line(QUEUE, level), 0, -1))}
            assert line == {run_id for run_id in there if self.levels[run_id] == level}

    @invariant()
    def nothing_is_left_of_what_has_ended(self) -> None:
        for run_id in self.ended:
            assert self.wait(self.redis.exists(keys.JOB + run_id, keys.RETRY + run_id)) == 0
            assert self.wait(self.redis.exists(keys.RESULT + run_id)) == 1


def check(url: str, examples: int, steps: int) -> None:
    with asyncio.Runner() as runner:
        QueueModel.url, QueueModel.runner = url, runner
        run_state_machine_as_test(
            QueueModel,
            settings=rules(
                max_examples=examples,
                stateful_step_count=steps,
                deadline=None,
                derandomize=examples < 100,
                suppress_health_check=list(HealthCheck),
            ),
        )


def test_the_queue_is_as_its_model_says(settings: Settings) -> None:
    check(settings.redis.url, examples=20, steps=30)


@pytest.mark.long
def test_the_queue_is_as_its_model_says_for_long(settings: Settings) -> None:
    check(settings.redis.url, examples=1_000, steps=60)
