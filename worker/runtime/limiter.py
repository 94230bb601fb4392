"""Concurrency and rate limits: a claimed job acquires a place, or returns to the queue until one may be free."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any, NamedTuple, cast

from redis.asyncio import Redis

from worker.job.definition import Job
from worker.job.limits import Limits, short_text
from worker.queue import keys
from worker.queue.claims import Claim
from worker.queue.key_problems import KeyProblemLog, from_script
from worker.queue.namespace import prefix_of
from worker.queue.scripts import script

#: Longest wait for a place: its owner may have died without releasing it.
_PLACE_SECONDS = 5.0
#: Of a job whose code has none: an operator may set some.
_NO_LIMITS = Limits()


class Held(NamedTuple):
    """The reason and the time for which a job has to wait.

    Attributes:
        seconds: longest time in seconds until it is due again.
        why: `limit` or `rate`.
    """

    seconds: float
    why: str


class Limiter:
    """Enforces the limits of all jobs.

    Args:
        redis: the connection to the queue.
        owner: the value of this worker's leases: a place belongs to the owner of its run. Empty for any owner.
    """

    def __init__(self, redis: Redis, owner: str = "") -> None:
        self._owner = owner
        self._places: dict[str, str] = {}  # the key of the place of each run that has one
        self._problems = KeyProblemLog(prefix_of(redis))
        self._acquire = redis.register_script(script("acquire"))
        self._release = redis.register_script(script("release"))

    async def acquire(self, job: Job[..., Any], claim: Claim, arguments: Mapping[str, Any]) -> Held | None:
        """Acquire a place. Return None if the job has one, else how long it has to wait."""
        limits = job.limits or _NO_LIMITS
        rate = limits.rate
        limited, rated = (
            _scope(job.name, limits.concurrency_key, arguments),
            _scope(job.name, limits.rate_key, arguments),
        )
        names = [keys.LIMIT + limited, keys.HELD + limited, keys.RATE + rated, keys.RESERVED + claim.run_id]
        values: list[Any] = [claim.run_id, job.name, keys.IN_PROGRESS, limits.concurrency]
        values += [rate.every_ms if rate else 0, rate.tolerance_ms if rate else 0, round(_PLACE_SECONDS * 1000)]
        names += [keys.LIMITS, keys.RATES, claim.queue, keys.PRIORITIES + claim.queue]
        answer = self._acquire(keys=names, args=[*values, keys.PRIORITY, claim.number])
        wait_ms, why, noted, has_place = await cast(Awaitable[Any], answer)
        self._problems.report(map(from_script, noted))
        if has_place:
            self._places[claim.run_id] = names[0]
        return Held(int(wait_ms) / 1000, why.decode()) if int(wait_ms) > 0 else None

    def place_of(self, claim: Claim) -> str | None:
        """Return the key of the places among which a run has one; None if it has none."""
        return self._places.get(claim.run_id)

    async def release(self, job: Job[..., Any], claim: Claim, arguments: Mapping[str, Any]) -> None:
        """Release a place."""
        limits = job.limits or _NO_LIMITS
        had_place = self._places.pop(claim.run_id, None) is not None  # an operator may have set the only limit
        if had_place or limits.concurrency:
            scope = _scope(job.name, limits.concurrency_key, arguments)
            names = [keys.LIMIT + scope, keys.HELD + scope, claim.queue, keys.PRIORITIES + claim.queue]
            names.append(keys.IN_PROGRESS + claim.run_id)
            values: list[Any] = [claim.run_id, keys.PRIORITY, self._owner, claim.number]
            await cast(Awaitable[Any], self._release(keys=names, args=values))


def line_key(job: Job[..., Any], arguments: Mapping[str, Any]) -> str:
    """Return the key of the line of runs of a job that wait for a place with these arguments."""
    return keys.HELD + _scope(job.name, (job.limits or _NO_LIMITS).concurrency_key, arguments)


def _scope(job: str, by: str | None, arguments: Mapping[str, Any]) -> str:
    return job if by is None else f"{job}:{short_text(str(arguments.get(by)))}"
