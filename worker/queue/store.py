"""The queue's hot path. Each move of a job in Redis is one script, and therefore atomic and one round trip."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from typing import Any, NamedTuple, cast

from redis.asyncio import Redis

from worker.errors import CorruptKey
from worker.queue import keys
from worker.queue.claims import Ack, AckAndClaim, Claim, FetchResult, Shares, add_dead_letter
from worker.queue.connection import DedicatedConnection
from worker.queue.group_store import GroupStore
from worker.queue.key_problems import KeyProblemLog, from_script
from worker.queue.namespace import prefix_of
from worker.queue.payload import now_ms
from worker.queue.scripts import script

logger = logging.getLogger("longhaul.queue")

#: Number of entries a call, limited because a script blocks Redis for all clients.
_UNPARKED_AT_ONCE = 500
#: Mean ms between two claims of runs whose job no worker knows.
_MS_PER_UNKNOWN_RUN = 100.0
_LONGEST_PARK_SECONDS = 86_400.0


class UnknownJob(NamedTuple):
    """The job of a run that a worker does not know.

    Attributes:
        name: its name.
        longest_seconds: the longest time until the run is due again: until it expires.
    """

    name: str
    longest_seconds: float


class Lock(NamedTuple):
    """The lock of a unique run.

    Attributes:
        key: the key of the lock, equal for runs that exclude each other.
        counts: when the lock counts: `time`, `active` or `waiting`; see enqueue.lua.
        ms: lifetime in ms.
    """

    key: str
    counts: str
    ms: int


class Enqueued(NamedTuple):
    """The result of enqueueing a job.

    Attributes:
        run_id: id of the run: the new one, or the existing one.
        is_new: whether the job was enqueued.
        replaced: whether it replaced a waiting run.
    """

    run_id: str
    is_new: bool
    replaced: bool


class QueueStore:
    """Moves jobs in Redis.

    Args:
        redis: connection that returns bytes.
        owner: name of this worker, the value of its leases.
        lease_seconds: lifetime of a lease, in seconds.
        connection: dedicated connection of `ack_and_claim`; that of `redis` by default.
        queue_limits: how many jobs of a queue may run at the same time, over all workers; without an entry any number.
        keep_expiry: whether a payload keeps its expiry when it is claimed. By this rule of arq, an expired job has no
            further attempt.
    """

    def __init__(
        self,
        redis: Redis,
        owner: str = "",
        lease_seconds: float = 10.0,
        connection: DedicatedConnection | None = None,
        *,
        queue_limits: Mapping[str, int] | None = None,
        keep_expiry: bool = False,
    ) -> None:
        self.redis = redis
        self.groups = GroupStore(redis)
        self._problems = self.problems = KeyProblemLog(prefix_of(redis))
        self.owner = owner
        self.lease_ms = round(lease_seconds * 1000)
        self.claims = AckAndClaim(
            redis,
            owner,
            self.lease_ms,
            problems=self._problems,
            connection=connection,
            queue_limits=queue_limits,
            keep_expiry=keep_expiry,
        )
        self._scripts = {
            name: redis.register_script(script(name))
            for name in (
                "requeue",
                "unpark",
                "unpark_known",
                "restore",
                "enqueue",
                "enqueue_many",
                "fire_cron",
                "cancel",
                "retry",
            )
        }

    async def _run(self, name: str, names: list[str], arguments: list[Any]) -> Any:
        return await cast(Awaitable[Any], self._scripts[name](keys=names, args=arguments))

    async def ack_and_claim(self, ended: Sequence[Ack], slots: int, shares: Shares, *, newest: int = 0) -> FetchResult:
        """Acknowledge jobs that have ended, and claim due jobs; see `AckAndClaim`."""
        return await self.claims(ended, slots, shares, newest=newest)

    async def close(self) -> None:
        """Close the dedicated connection."""
        await self.claims.close()

    def _is_done(self, answer: Any) -> bool:
        """Return the answer of a script, or raise the problem that it reports.

        Raises:
            CorruptKey: a key has a wrong type, and the script has changed nothing.
        """
        if isinstance(answer, list):
            raise self._corrupt(answer[0])
        return bool(answer)

    def _corrupt(self, noted: Sequence[Any]) -> CorruptKey:
        prefix = prefix_of(self.redis)
        return CorruptKey("; ".join(str(from_script(raw).in_namespace(prefix)) for raw in noted))

    async def requeue(
        self,
        claim: Claim,
        *,
        delay: float,
        counts: bool,
        parked_by: str = "",
        unknown: UnknownJob | None = None,
        line: str = "",
    ) -> bool:
        """Put a job back into its queue.

        Args:
            claim: the job.
            delay: seconds until it is due.
            counts: whether this claim counts as an attempt.
            parked_by: the entry of `worker:paused` that pauses it.
            unknown: its job, if this worker does not know it: the run waits for a worker that does.
            line: the key of the line in which it waits for a place; it is due at once if it is no longer there.

        Returns:
            False if another worker has claimed or ended it.
        """
        i = claim.run_id
        names = [claim.queue, keys.IN_PROGRESS + i, keys.JOB + i, keys.RETRY + i, keys.PRIORITIES + claim.queue]
        names.append(keys.RESULT + i)
        arguments = [i, self.owner, round(delay * 1000), "0" if counts else "1", claim.payload or b"", keys.PRIORITY]
        arguments += [parked_by, "", 0]
        if parked_by:
            names += (keys.PARKED_RUNS + parked_by, keys.PARKED)
        elif unknown is not None:
            names += (keys.awaited(unknown.name, claim.queue), keys.UNKNOWN + claim.queue)
            per_run_ms = random.uniform(0.5, 1.5) * _MS_PER_UNKNOWN_RUN  # noqa: S311 - no secret
            arguments[-2:] = [per_run_ms, round(min(unknown.longest_seconds, _LONGEST_PARK_SECONDS) * 1000)]
        return self._is_done(await self._run("requeue", names, [*arguments, line]))

    async def unpark_known(self, job: str, queue: str) -> int:
        """Make some hundred runs due that were parked because no worker knew their job.

        Returns:
            The number of runs that are still parked for the job.
        """
        names = [keys.awaited(job, queue), queue, keys.UNKNOWN + queue, keys.PRIORITIES + queue]
        return int(await self._run("unpark_known", names, [keys.PRIORITY, _UNPARKED_AT_ONCE]))

    async def unpark(self, order: str, run_ids: Sequence[str] = ()) -> int:
        """Make runs due that were parked for an entry of `worker:paused`.

        Args:
            order: the entry.
            run_ids: ids of the runs; by default some hundred of all.

        Returns:
            The number of runs that are still parked for the entry.
        """
        arguments: list[Any] = [order, keys.PRIORITIES, keys.PRIORITY, 0 if run_ids else _UNPARKED_AT_ONCE, *run_ids]
        return int(await self._run("unpark", [keys.PARKED_RUNS + order, keys.PARKED], arguments))

    async def restore(self, claim: Claim) -> bool:
        """Restore a job of this worker in a Redis that has lost it.

        Returns:
            False if another worker has claimed it.
        """
        names = [claim.queue, keys.IN_PROGRESS + claim.run_id, keys.JOB + claim.run_id]
        arguments = [claim.run_id, self.owner, self.lease_ms, claim.payload or b""]
        return self._is_done(await self._run("restore", names, arguments))

    async def enqueue(
        self,
        run_id: str,
        payload: str,
        *,
        queue: str,
        delay: float = 0.0,
        at: datetime | None = None,
        replace: bool = False,
        lock: Lock | None = None,
        priority: int = 0,
        fair: str = "",
    ) -> Enqueued:
        """Put a job into the queue.

        Args:
            run_id: its id.
            payload: its text.
            queue: its queue.
            delay: seconds until it is due.
            at: the due time, instead of `delay`.
            replace: whether to replace a waiting run with this id or lock.
            lock: the lock of a unique job.
            priority: due jobs of a higher priority are claimed first.
            fair: weight and flow of a fair run (fair.lua); empty for any other.
        """
        arguments = [run_id, payload, *_due(delay, at), keys.JOB, keys.RESULT, keys.IN_PROGRESS]
        arguments += ["1" if replace else "0", *((lock.counts, lock.ms) if lock else ("", 0)), priority, keys.PRIORITY]
        arguments.append(fair)
        names = [queue, keys.CANCELLED, keys.UNIQUE + lock.key if lock else queue, keys.PRIORITIES + queue]
        how, known = await self._run("enqueue", names, arguments)
        if how < 0:
            raise self._corrupt(known)
        return Enqueued(known.decode(), is_new=how == 1, replaced=how == 2)

    async def enqueue_many(
        self,
        jobs: Sequence[tuple[str, str]],
        *,
        queue: str,
        delay: float = 0.0,
        at: datetime | None = None,
        priority: int = 0,
        group: str | None = None,
        fair: Sequence[str] = (),
    ) -> frozenset[int]:
        """Enqueue jobs, each an id and a payload. Return the positions of those whose id is already known.

        Args:
            jobs: id and payload of each.
            queue: their queue.
            delay: seconds until they are due.
            at: the due time, instead of `delay`.
            priority: their priority.
            group: the group whose members they are.
            fair: weight and flow of each (fair.lua), if they are fair.
        """
        arguments: list[Any] = [keys.JOB, keys.RESULT, priority, *_due(delay, at), 3 if fair else 2]
        each = ((*job, entry) for job, entry in zip(jobs, fair, strict=True)) if fair else jobs
        arguments += chain.from_iterable(each)
        names = [queue, keys.CANCELLED, *_line(queue, priority), queue if group is None else keys.GROUP + group]
        known = await self._run("enqueue_many", names, arguments)
        if known and isinstance(known[0], list):
            raise self._corrupt(known[0])
        return frozenset(place - 1 for place in known)

    async def set_attempt(self, claim: Claim, attempt: int) -> Claim:
        """Raise the attempt number of a claim (`_job_try` of arq's clients)."""
        await self.redis.set(keys.RETRY + claim.run_id, attempt)
        return claim._replace(attempt=attempt)

    async def cancel(self, run_id: str, *, queue: str) -> bool:
        """Cancel a run. Return False if the queue does not have it."""
        names = [queue, keys.CANCELLED, keys.IN_PROGRESS + run_id]
        return self._is_done(await self._run("cancel", names, [run_id]))

    async def requeue_orphan(self, run_id: str, payload: str, *, queue: str) -> None:
        """Put a run of the ledger back into a queue that has lost it."""
        pipeline = self.redis.pipeline(transaction=True)
        pipeline.set(keys.JOB + run_id, payload, nx=True)
        pipeline.zadd(queue, {run_id: now_ms()}, nx=True)
        await pipeline.execute()

    async def fire(
        self,
        run_id: str,
        payload: str | bytes,
        *,
        queue: str,
        due: datetime,
        line: str,
        old_line: str = "",
        priority: int = 0,
        lock: Lock | None = None,
    ) -> bool:
        """Enqueue a cron job for one due time.

        Args:
            run_id: id of the run.
            payload: its payload.
            queue: its queue.
            due: the due time.
            line: job, cron line and application, the field of `worker:cron`.
            old_line: the field that older workers write, without the application; it is read, never written.
            priority: its priority.
            lock: the lock of a unique job.

        Returns:
            False if another worker enqueued it, or the unique job is in the queue.

        Raises:
            CorruptKey: the queue, or `worker:cron`, has another type.
        """
        names = [queue, keys.JOB + run_id, keys.RESULT + run_id, keys.CRON, keys.IN_PROGRESS + run_id]
        names += [*_line(queue, priority), keys.UNIQUE + lock.key if lock else queue]
        arguments: list[Any] = [run_id, payload, round(due.timestamp() * 1000), line, priority]
        arguments += (keys.JOB, keys.IN_PROGRESS, *((lock.counts, lock.ms) if lock else ("", 0)), old_line)
        answer = await self._run("fire_cron", names, arguments)
        fired, noted = answer
        if fired < 0:
            raise self._corrupt(noted)
        self._problems.report(map(from_script, noted))
        return bool(fired)

    async def time(self) -> datetime:
        """Return the time by the server's clock, by which jobs are due."""
        seconds, microseconds = cast(tuple[int, int], await self.redis.time())
        return datetime.fromtimestamp(seconds, UTC).replace(microsecond=microseconds)

    async def retry(self, run_id: str, payload: bytes, *, queue: str, letter: bool) -> bool:
        """Put an ended run back into its queue.

        Args:
            run_id: id of the run.
            payload: its payload, as it was in the queue.
            queue: its queue.
            letter: whether it is a dead letter.

        Returns:
            False if the letter is gone, or its id is in the queue again.
        """
        names = [queue, keys.JOB + run_id, keys.RESULT + run_id, keys.RETRY + run_id]
        names += [keys.CANCELLED, keys.DEAD, keys.RETRIED, keys.DEAD_AT]
        return self._is_done(await self._run("retry", names, [run_id, payload, "1" if letter else "0"]))

    async def add_dead_letter(
        self, claim: Claim, error: str, *, job: str, trace: str = "", in_ledger: bool = False
    ) -> None:
        """Store a job that has failed permanently as a dead letter; see dead_letters.py."""
        await add_dead_letter(self.redis, claim, error, job=job, trace=trace, in_ledger=in_ledger)

    async def read_workers(self) -> dict[bytes, bytes]:
        """Return the published values of workers, by name."""
        return await cast(Awaitable[dict[bytes, bytes]], self.redis.hgetall(keys.WORKERS))

    async def known(self, run_ids: list[str], queue: str) -> list[bool]:
        """Return whether the queue has each id."""
        if not run_ids:
            return []
        scores = await self.redis.zmscore(queue, run_ids)
        return [score is not None for score in scores]


def _line(queue: str, priority: int) -> tuple[str, str]:
    """Return the key of the levels in use, and the key of one level's line (the queue if there is none)."""
    return keys.PRIORITIES + queue, keys.priority_line(queue, priority) if priority else queue


def _due(delay: float, at: datetime | None) -> tuple[int, str]:
    """Return the due time of a job for the scripts: ms from now, or ms since 1970 if followed by "1"."""
    return (round(delay * 1000), "0") if at is None else (round(at.timestamp() * 1000), "1")
