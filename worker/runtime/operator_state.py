"""The operator commands as last read: plain sets and a hash in Redis.

| command | effect |
| --- | --- |
| `SADD worker:paused <run id, job, queue or *>` | pause; `SREM` resumes |
| `SADD worker:cancelled <run id>` | cancel |
| `SADD worker:paused 'job?argument=value'` | pause the runs of a job with this argument; likewise `worker:cancelled` |
| `HSET worker:pace <run id, job or *> <rows a second>` | limit the pace; `HDEL` removes the limit |
| `SADD worker:drain <worker>` | drain a worker; the worker then removes the command |
| `SADD worker:retry <run id>` | retry a run; the worker that retries it removes the command |

Stock arq clients abort runs with the sorted set `arq:abort`, which counts as a cancel.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from worker.errors import InvalidArguments
from worker.queue import keys
from worker.queue.conditions import Condition, parse_entry
from worker.queue.invalidations import InvalidationListener
from worker.queue.key_problems import KeyProblem, KeyProblemLog, quote, wrong_member, wrong_type, wrong_value
from worker.queue.outage_log import OutageLog
from worker.queue.payload import read_run_id

logger = logging.getLogger("longhaul.operators")

Order = Literal["pause", "cancel"]
#: Returns the arguments of a run, as JSON values by name; none if they are not known.
Arguments = Callable[[], Mapping[str, Any]]

#: The keys of all commands; the listener has to track them.
KEYS = frozenset({keys.PAUSED, keys.CANCELLED, keys.ABORT, keys.PACE, keys.DRAINED, keys.RETRIED, keys.PARKED})
#: Longest age, in seconds, of the commands that a batch boundary uses.
FRESH_SECONDS = 0.1
_RETRY_SECONDS = 1.0
_READING = "operator commands cannot be read"


def no_arguments() -> Mapping[str, Any]:
    """Return no arguments."""
    return {}


class OperatorState:
    """The operator commands as last read. During an outage of Redis, walks continue with the last known commands.

    Args:
        redis: the connection that reads them if no listener is active.
        listener: receives changes of their keys; None for none.
        outage: logs outages of Redis.
        obeys_aborts: whether stock arq clients may abort runs (`allow_abort_jobs` of arq's workers).
    """

    def __init__(
        self,
        redis: Redis,
        listener: InvalidationListener | None = None,
        outage: OutageLog | None = None,
        *,
        obeys_aborts: bool = True,
    ) -> None:
        self.keys = KEYS
        self._awaited: tuple[str, ...] = ()
        self._redis = redis
        self._listener = listener
        self._obeys_aborts = obeys_aborts
        self._stale = True
        self._read_at = -math.inf
        self._reading = asyncio.Lock()
        self._failing = False
        self._outage = outage or OutageLog()
        self._problems = KeyProblemLog()
        self._has_problems = False
        self._cancelled: frozenset[str] = frozenset()
        self._aborted: frozenset[str] = frozenset()
        self.paused: frozenset[str] = frozenset()
        self.cancelled: frozenset[str] = frozenset()
        self._arguments: Mapping[str, Sequence[str]] = {}
        #: The entries of `worker:paused` and `worker:cancelled` for runs with some arguments, by job.
        self._paused_where: dict[str, list[Condition]] = {}
        self._cancelled_where: dict[str, list[Condition]] = {}
        self.paces: dict[str, float] = {}
        self.drained: frozenset[str] = frozenset()
        self.retried: frozenset[str] = frozenset()
        #: The entries of `worker:paused` for which runs are parked.
        self.parked: frozenset[str] = frozenset()
        #: Whether runs were parked whose jobs this worker knows.
        self.are_jobs_awaited = False

    def await_jobs(self, awaited: Iterable[str]) -> None:
        """Read, with the commands, whether one of these keys exists: runs that wait for a job of this worker."""
        self._awaited = tuple(awaited)
        self.keys = KEYS.union(self._awaited)

    def know_arguments(self, arguments: Mapping[str, Sequence[str]]) -> None:
        """Set the names of the arguments of each job of this worker, for commands by argument."""
        self._arguments = arguments

    def changed(self) -> None:
        """Note that a command was written."""
        self._stale = True

    @property
    def known(self) -> bool:
        """Whether the commands are current: until the listener reports a change, or for a moment without a listener."""
        if self._has_problems and time.monotonic() - self._read_at > _RETRY_SECONDS:
            return False
        if self._listener is not None and self._listener.active:
            return not self._stale
        return time.monotonic() - self._read_at < FRESH_SECONDS

    @property
    def must_ask(self) -> bool:
        """Whether the commands must be read again before use: if no listener is active and Redis is available."""
        return not self._failing and (self._listener is None or not self._listener.active) and not self.known

    async def refresh(self, *, now: bool = False) -> None:
        """Read the commands again unless they are current.

        Args:
            now: read them even if they are current.
        """
        if self.known and not now:
            return
        async with self._reading:  # concurrent callers share the answer
            if now or not self.known:
                await self._read()

    async def _read(self) -> None:
        began = time.monotonic()
        commands = [
            ("SMEMBERS", keys.PAUSED),
            ("SMEMBERS", keys.CANCELLED),
            ("ZRANGE", keys.ABORT, 0, -1),
            ("HGETALL", keys.PACE),
            ("SMEMBERS", keys.DRAINED),
            ("SMEMBERS", keys.RETRIED),
            ("SMEMBERS", keys.PARKED),
            ("EXISTS", *(self._awaited or (keys.PARKED,))),
        ]
        try:
            if self._listener is not None and self._listener.active:
                self._stale = False  # before the read: a change during the read marks the state stale again
                answers = await self._listener.read(*commands)
                if not isinstance(answers[3], ResponseError):
                    answers[3] = dict(zip(answers[3][::2], answers[3][1::2], strict=True))
            else:
                pipeline = self._redis.pipeline(transaction=False)
                for command in commands:
                    pipeline.execute_command(*command)
                answers = await pipeline.execute(raise_on_error=False)
            for answer in answers:
                if isinstance(answer, RedisError) and not is_wrong_type(answer):
                    raise answer
        except RedisError as error:
            self._stale = True
            self._read_at = time.monotonic() + _RETRY_SECONDS
            self._failing = True
            self._outage.failed(_READING, error)
            return
        self._failing = False
        self._outage.answered(_READING)
        self._read_at = began
        problems: list[KeyProblem] = []
        paused, cancelled, aborted, paces, drained, retried, parked, awaited = answers
        self.are_jobs_awaited = bool(self._awaited and awaited)
        self.paused = read_names(keys.PAUSED, paused, self.paused, problems)
        self._cancelled = read_names(keys.CANCELLED, cancelled, self._cancelled, problems)
        if self._obeys_aborts:
            self._aborted = read_names(keys.ABORT, aborted, self._aborted, problems, remove="ZREM")
        self.cancelled = self._cancelled | self._aborted
        self._paused_where = self._read_conditions(keys.PAUSED, self.paused, problems)
        self._cancelled_where = self._read_conditions(keys.CANCELLED, self._cancelled, problems)
        self.drained = read_names(keys.DRAINED, drained, self.drained, problems)
        self.retried = read_names(keys.RETRIED, retried, self.retried, problems)
        self.parked = read_names(keys.PARKED, parked, self.parked, problems)
        self.paces = read_paces(paces, self.paces, problems)
        self._has_problems = bool(problems)
        self._problems.report(problems)

    def is_queue_paused(self, queue: str) -> bool:
        """Return whether a queue is paused."""
        return not self.paused.isdisjoint((queue, keys.ALL))

    def _read_conditions(
        self, key: str, names: Iterable[str], problems: list[KeyProblem]
    ) -> dict[str, list[Condition]]:
        """Return the conditions among the entries of a set, by job. Report those that match no run of a known job."""
        found: dict[str, list[Condition]] = {}
        for name in names:
            job = name.partition("?")[0]
            if "?" not in name or name in self._arguments or job not in self._arguments:
                continue
            try:
                condition = parse_entry(name)
                condition.check_names(self._arguments[job])
            except InvalidArguments as error:
                problems.append(KeyProblem(key, f"has the entry {name!r}: {error}", f"SREM {key} {quote(name)}"))
            else:
                found.setdefault(job, []).append(condition)
        return found

    def has_conditions(self, job: str) -> bool:
        """Return whether there are commands for runs of a job with some arguments."""
        return job in self._paused_where or job in self._cancelled_where

    def is_cancelled(self, run_id: str, job: str, arguments: Arguments = no_arguments) -> bool:
        """Return whether a run is cancelled."""
        if run_id in self.cancelled:
            return True
        return job in self._cancelled_where and _find(self._cancelled_where[job], arguments) is not None

    def find_order(self, run_id: str, job: str, queue: str, arguments: Arguments = no_arguments) -> Order | None:
        """Return the command for a run; None if there is none.

        Args:
            run_id: id of the run.
            job: its job.
            queue: its queue.
            arguments: returns its arguments, as JSON values by name; called only if there are commands by argument.
        """
        if self.is_cancelled(run_id, job, arguments):
            return "cancel"
        return "pause" if self.find_pause(run_id, job, queue, arguments) else None

    def find_pause(self, run_id: str, job: str, queue: str, arguments: Arguments = no_arguments) -> str | None:
        """Return the entry of `worker:paused` that pauses a run; None if there is none. See `find_order`."""
        if not self.paused:
            return None
        entry = next((name for name in (run_id, job, queue, keys.ALL) if name in self.paused), None)
        if entry is None and job in self._paused_where:
            return _find(self._paused_where[job], arguments)
        return entry

    def rows_per_second(self, run_id: str, job: str) -> float | None:
        """Return the pace that a run is limited to: its own, its job's, or that of all runs."""
        return next((self.paces[name] for name in (run_id, job, keys.ALL) if name in self.paces), None)


def _find(conditions: Iterable[Condition], arguments: Arguments) -> str | None:
    values = arguments()
    return next((condition.entry for condition in conditions if condition.matches(values)), None)


def is_wrong_type(error: BaseException) -> bool:
    """Return whether an error says that a key has another type."""
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)


def read_names(
    key: str,
    answer: Iterable[bytes] | ResponseError,
    last: frozenset[str],
    problems: list[KeyProblem],
    *,
    remove: str = "SREM",
) -> frozenset[str]:
    """Return the names in a set. Omit members that cannot be names.

    Args:
        key: the key.
        answer: its members; the error if it has another type.
        last: the names that were last read; returned if the key has another type.
        problems: the list to which problems are added.
        remove: the Redis command that removes a member, for the log.
    """
    if isinstance(answer, ResponseError):
        problems.append(wrong_type(key))
        return last
    names = set()
    for member in answer:
        name = read_run_id(member)
        if name is None:
            problems.append(wrong_member(key, member, command=remove))
        else:
            names.add(name)
    return frozenset(names)


def read_paces(
    answer: Mapping[bytes, bytes] | ResponseError, last: dict[str, float], problems: list[KeyProblem]
) -> dict[str, float]:
    """Return the rows per second that operators have set, by name; see `read_names`."""
    if isinstance(answer, ResponseError):
        problems.append(wrong_type(keys.PACE))
        return last
    paces = {}
    for field, raw in answer.items():
        name, pace = read_run_id(field), _to_pace(raw)
        if name is None or pace is None:
            problems.append(wrong_value(keys.PACE, raw, field=field))
        else:
            paces[name] = pace
    return paces


def _to_pace(raw: bytes) -> float | None:
    try:
        value = float(raw)
    except ValueError:
        return None
    return value if 0 < value < math.inf else None
