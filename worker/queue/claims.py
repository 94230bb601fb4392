"""Claims: acknowledges jobs that have ended and claims due jobs, in one script and one round trip."""

from __future__ import annotations

import itertools
import json
import logging
import math
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, NamedTuple, cast

from redis.asyncio import Redis
from redis.exceptions import DataError, NoScriptError, ResponseError

from worker.errors import format_error
from worker.queue import keys
from worker.queue.connection import DedicatedConnection
from worker.queue.dead_letters import encode_letter
from worker.queue.group_store import KEEP_GROUP_MS
from worker.queue.key_problems import KeyProblemLog, from_script, printable
from worker.queue.outage_log import REFUSALS, kind_of
from worker.queue.payload import LONGEST_ID, Payload, encode_strictly, now_ms, read_run_id
from worker.queue.result import Result, encode_result
from worker.queue.scripts import script

logger = logging.getLogger("longhaul.queue")

#: Fraction of a ms in the due time of a running job, which is due when its lease expires: see running_mark.lua.
RUNNING_MARK = 0.5

#: Queues in the order in which they are served, each with the most jobs to take from it.
Shares = Sequence[tuple[str, int]]


class Claim(NamedTuple):
    """A job that this worker has claimed.

    Attributes:
        run_id: its id.
        queue: its queue.
        due_ms: its due time.
        payload: its payload, unparsed; None if the key did not exist.
        attempt: number of the attempt, from 1.
        expired: whether the lease of a previous worker has expired.
        payload_problem: why the payload could not be read; None if it was read or does not exist.
        number: number of the claim in this process, from 1: distinguishes two claims of one run; 0 for none.
    """

    run_id: str
    queue: str
    due_ms: int
    payload: bytes | None
    attempt: int
    expired: bool = False
    payload_problem: str | None = None
    number: int = 0


class Ack(NamedTuple):
    """A job that has ended.

    Attributes:
        claim: the job.
        result: the value of `arq:result:<id>`; None to write none.
        keep_ms: lifetime of the result in ms; below 0 for no limit.
        follow_up: the next run or the callback; see chain.py.
    """

    claim: Claim
    result: bytes | None
    keep_ms: int
    follow_up: dict[str, Any] | None = None


class FetchResult(NamedTuple):
    """The answer of ack_and_claim.lua.

    Attributes:
        refused: ids of ended jobs that another worker has claimed or ended.
        claims: the claimed jobs.
        ordered: whether there are operator commands, which may apply to the claimed jobs.
    """

    refused: frozenset[str]
    claims: list[Claim]
    ordered: bool


class AckAndClaim:
    """Acknowledges and claims jobs for one worker.

    Args:
        redis: connection that returns bytes.
        owner: name of the worker, the value of its leases.
        lease_ms: lifetime of a lease in ms.
        problems: logs keys that cannot be used.
        connection: dedicated connection for the script, which runs one at a time; that of `redis` by default.
        queue_limits: how many jobs of a queue may run at the same time, over all workers; without an entry any number.
        keep_expiry: whether a payload keeps its expiry when it is claimed: arq's rule.
    """

    def __init__(
        self,
        redis: Redis,
        owner: str,
        lease_ms: int,
        *,
        problems: KeyProblemLog,
        connection: DedicatedConnection | None = None,
        queue_limits: Mapping[str, int] | None = None,
        keep_expiry: bool = False,
    ) -> None:
        self._redis = redis
        self._owner = owner
        self._lease_ms = lease_ms
        self._problems = problems
        self._connection = connection
        self._queue_limits = queue_limits or {}
        self._keep_expiry = keep_expiry
        self._numbers = itertools.count(1)
        self.script = redis.register_script(script("ack_and_claim"))

    async def __call__(self, ended: Sequence[Ack], slots: int, shares: Shares, *, newest: int = 0) -> FetchResult:
        """Acknowledge jobs that have ended, and claim due jobs, in one round trip.

        If Redis cannot process one of the ends, each is acknowledged alone, and that one becomes a dead letter.

        Args:
            ended: jobs that have ended.
            slots: number of jobs to claim, at most.
            shares: queues in the order in which they are served, each with the most jobs to claim from it. A queue may
                come again.
            newest: number of these jobs to claim from those of each queue that became due last, before all others.

        Raises:
            RedisError: Redis does not answer, or rejects the command.
        """
        try:
            return await self._ack_and_claim(ended, slots, shares, newest=newest)
        except (ResponseError, DataError, UnicodeError, ValueError) as error:
            if not ended or not _blames_arguments(error):
                raise
            logger.error("ends acknowledged one by one count=%d error=%s", len(ended), format_error(error))
        refused: set[str] = set()
        for ack in ended:
            try:
                refused |= (await self._ack_and_claim([ack], 0, ())).refused
            except (ResponseError, DataError, UnicodeError, ValueError) as error:
                if not _blames_arguments(error):
                    raise
                refused |= await self._bury(ack, error)
        return FetchResult(frozenset(refused), [], ordered=False)

    async def _bury(self, ack: Ack, error: Exception) -> frozenset[str]:
        """Move a job to the dead letters if Redis cannot process its result or its next run."""
        claim, text = ack.claim, f"its end could not be written to Redis: {format_error(error)}"
        logger.error("job dead run=%s error=%s", claim.run_id, text)
        await add_dead_letter(self._redis, claim, text, job="")
        result = encode_result(
            None,
            Result(False, text),
            run_id=claim.run_id,
            queue=claim.queue,
            attempt=claim.attempt,
            started_ms=now_ms(),
        )
        return (await self._ack_and_claim([Ack(claim, result, max(ack.keep_ms, 60_000))], 0, ())).refused

    async def _ack_and_claim(self, ended: Sequence[Ack], slots: int, shares: Shares, *, newest: int = 0) -> FetchResult:
        queues = list(dict.fromkeys([queue for queue, _ in shares] + [one.claim.queue for one in ended]))
        places = {queue: place for place, queue in enumerate(queues, 1)}
        arguments: list[Any] = [self._owner, self._lease_ms, slots]
        arguments += (keys.IN_PROGRESS, keys.JOB, keys.RETRY, keys.RESULT)
        arguments += (keys.PRIORITIES, keys.PRIORITY, keys.RUNNING, 0 if self._keep_expiry else 1)
        follow_ups = {one.claim.run_id: one.follow_up for one in ended if one.follow_up is not None}
        arguments += (keys.GROUP, KEEP_GROUP_MS, keys.DEAD, keys.DEAD_AT)
        arguments += (json.dumps(follow_ups) if follow_ups else "", len(ended), newest)
        for claim, result, keep_ms, _ in ended:
            arguments += (claim.run_id, places[claim.queue], result or b"", keep_ms)
        for queue, most in shares:
            arguments += (places[queue], most, self._queue_limits.get(queue, 0))
        names = [keys.CANCELLED, keys.PAUSED, keys.ABORT, keys.PACE, keys.LIMITS, *queues]
        refused, taken, ordered, noted = await self._send(names, arguments)
        problems = {raw[0]: from_script(raw) for raw in noted}
        self._problems.report(problems.values())
        claims = []
        for place, raw_id, due, payload, attempt in taken:
            queue = queues[int(place) - 1]
            run_id = read_run_id(raw_id)
            if run_id is None:
                await self._discard(queue, raw_id, payload)
                continue
            at = float(due)
            due_ms = int(at) if math.isfinite(at) else 0
            problem = None if payload is not None else problems.get(keys.JOB.encode() + raw_id)
            expired = attempt > 1 and at - due_ms == RUNNING_MARK
            problem_text = problem and str(problem)
            claims.append(Claim(run_id, queue, due_ms, payload, attempt, expired, problem_text, next(self._numbers)))
        return FetchResult(frozenset(raw_id.decode() for raw_id in refused), claims, bool(ordered))

    async def _discard(self, queue: str, raw_id: bytes, payload: bytes | None) -> None:
        """Move a job with an invalid id to the dead letters, under a printable id."""
        name = printable(raw_id)[:100]
        logger.error("job dead queue=%s id=%s error=an id has 1 to %d printable characters", queue, name, LONGEST_ID)
        letter = encode_letter(
            payload or b"",
            job="",
            queue=queue,
            attempts=1,
            error=f"its id of {len(raw_id):,} bytes is not 1 to {LONGEST_ID} printable characters",
            trace="",
            in_ledger=False,
        )
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.zrem(queue, raw_id)
        pipeline.delete(*(prefix.encode() + raw_id for prefix in (keys.JOB, keys.IN_PROGRESS, keys.RETRY)))
        pipeline.hset(keys.DEAD, f"invalid id: {name}", letter)  # type: ignore[arg-type]
        pipeline.zadd(keys.DEAD_AT, {f"invalid id: {name}": now_ms()})
        await pipeline.execute(raise_on_error=False)

    async def _send(self, names: list[str], arguments: list[Any]) -> Any:
        script = self.script
        if self._connection is None:
            return await cast(Awaitable[Any], script(keys=names, args=arguments))
        try:
            return await self._connection.send("EVALSHA", script.sha, len(names), *names, *arguments)
        except NoScriptError:
            await self._connection.send("SCRIPT LOAD", script.script)
            return await self._connection.send("EVALSHA", script.sha, len(names), *names, *arguments)

    async def close(self) -> None:
        """Close the dedicated connection."""
        if self._connection is not None:
            await self._connection.close()


async def add_dead_letter(
    redis: Redis, claim: Claim, error: str, *, job: str, trace: str = "", in_ledger: bool = False
) -> None:
    """Store a job that has failed permanently as a dead letter; see dead_letters.py.

    Args:
        redis: connection to the queue.
        claim: the job.
        error: the reason, in one line.
        job: its name; empty where its payload could not be read.
        trace: the traceback; its end is kept.
        in_ledger: whether the ledger has the run, so that the letter only mirrors it.
    """
    text = encode_letter(
        claim.payload or b"",
        job=job,
        queue=claim.queue,
        attempts=claim.attempt,
        error=error,
        trace=trace,
        in_ledger=in_ledger,
    )
    pipeline = redis.pipeline(transaction=True)
    pipeline.hset(keys.DEAD, claim.run_id, text)  # type: ignore[arg-type]
    pipeline.zadd(keys.DEAD_AT, {claim.run_id: now_ms()})
    await pipeline.execute()


def _blames_arguments(error: Exception) -> bool:
    """Return whether an error is caused by the data sent, so that the same call would fail again."""
    if not isinstance(error, ResponseError):
        return True
    return kind_of(error) not in REFUSALS and "script" in str(error).lower()


def with_header(claim: Claim, name: str, value: str) -> Claim:
    """Return a claim whose payload has one more header. One that cannot be read, or is none of JSON, stays as it is."""
    try:
        values = json.loads(claim.payload or b"")
        values["h"] = {**(values.get("h") or {}), name: value}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return claim
    return claim._replace(payload=encode_strictly(values).encode())


def ledger_text(payload: Payload) -> str:
    """Return the payload of a claimed run as text, marked as known to the ledger."""
    marked = payload._replace(in_ledger=True)
    try:
        return marked.to_json()
    except TypeError:  # rejected arguments of a pickle are not JSON: the run ends and needs no payload
        return marked._replace(args=[], kwargs={}).to_json()
