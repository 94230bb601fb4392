"""The operator commands as last read: plain sets and a hash in Redis.

| command | effect |
| --- | --- |
| `SADD worker:paused <run id, job, queue or *>` | pause; `SREM` resumes |
| `SADD worker:cancelled <run id>` | cancel |
| `SADD worker:paused 'job?argument=value'` | pause the runs of a job with this argument; likewise `worker:cancelled` |
| `HSET worker:pace <run id, job or *> <rows a second>` | limit the pace; `HDEL` removes the limit |
| `HSET worker:limits <job or queue> <number>`, `HSET worker:rates <job> <number>` | limit runs |
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
from dataclasses import replace
from typing import Any, Literal

from redis.asyncio import Redis
from redis.exceptions import RedisError

from worker.errors import InvalidArguments
from worker.queue import keys
from worker.queue.conditions import Condition, StandsFor, parse_entry
from worker.queue.invalidations import InvalidationListener
from worker.queue.key_problems import KeyProblem, KeyProblemLog
from worker.queue.namespace import prefix_of
from worker.queue.outage_log import OutageLog
from worker.runtime.operator_keys import (
    SCANS,
    Command,
    CommandScan,
    check_answer,
    find_conditions,
    is_wrong_type,
    to_pace,
)
from worker.runtime.order_audit import OrderChanges

logger = logging.getLogger("longhaul.operators")

Order = Literal["pause", "cancel"]
#: Returns the arguments of a run, as JSON values by name; none if they are not known.
Arguments = Callable[[], Mapping[str, Any]]

#: The keys of all commands; the listener has to track them.
KEYS = frozenset(SCANS)
#: Longest age, in seconds, of the commands that a batch boundary uses.
FRESH_SECONDS = 0.1
_RETRY_SECONDS = 1.0
#: After a scan of several pages, the next one begins after this many times its duration.
_SCAN_REST = 4.0
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
        self._names: tuple[str, ...] = (keys.ALL,)
        self._redis = redis
        self._listener = listener
        self._obeys_aborts = obeys_aborts
        self._stale = True
        self._read_at = -math.inf
        self._rest_until = -math.inf
        #: Whether the last scan took several pages.
        self._is_large = False
        #: Whether a command may have been written since those by argument were looked for, and the earliest next look.
        self._has_news = True
        self._look_at = -math.inf
        self._reading = asyncio.Lock()
        #: The answers of `ask` since the current scan began, by key: they are newer than its pages.
        self._answered: dict[str, dict[str, Any]] = {}
        self._failing = False
        self._outage = outage or OutageLog()
        self._problems = KeyProblemLog(prefix_of(redis))
        self._has_problems = False
        self._cancelled: frozenset[str] = frozenset()
        self._aborted: frozenset[str] = frozenset()
        self.paused: frozenset[str] = frozenset()
        self.cancelled: frozenset[str] = frozenset()
        self._arguments: Mapping[str, Sequence[str]] = {}
        self._stands_for: Mapping[str, StandsFor] = {}
        #: The entries of `worker:paused` and `worker:cancelled` for runs with some arguments, by job.
        self._paused_where: dict[str, list[Condition]] = {}
        self._cancelled_where: dict[str, list[Condition]] = {}
        self.paces: dict[str, float] = {}
        #: The jobs and queues that operators have set limits or rates for. The scripts read the values.
        self.limited: frozenset[str] = frozenset()
        self._limits: dict[str, frozenset[str]] = {keys.LIMITS: frozenset(), keys.RATES: frozenset()}
        self.drained: frozenset[str] = frozenset()
        self.retried: frozenset[str] = frozenset()
        #: The entries of `worker:paused` for which runs are parked.
        self.parked: frozenset[str] = frozenset()
        self.changes = OrderChanges()
        #: Whether runs were parked whose jobs this worker knows.
        self.are_jobs_awaited = False

    def set_names(self, names: Iterable[str], awaited: Iterable[str]) -> None:
        """Set the names and keys that concern this worker, besides the runs that it has.

        Args:
            names: its jobs and queues.
            awaited: keys that exist while runs wait for one of its jobs; they are read with the commands.
        """
        self._names = (*names, keys.ALL)
        self._awaited = tuple(awaited)
        self.keys = KEYS.union(self._awaited)

    def know_arguments(self, arguments: Mapping[str, Sequence[str]], stands_for: Mapping[str, StandsFor]) -> None:
        """Set the names of the arguments of each job of this worker, for commands by argument, and what texts mean."""
        self._arguments, self._stands_for = arguments, stands_for

    def changed(self) -> None:
        """Note that a command was written."""
        self._stale = self._has_news = True

    @property
    def known(self) -> bool:
        """Whether the commands are current: until the listener reports a change, or for a moment without a listener."""
        now = time.monotonic()
        if now < self._rest_until:
            return True
        if self._has_problems and now - self._read_at > _RETRY_SECONDS:
            return False
        if self._listener is not None and self._listener.active:
            return not self._stale
        return now - self._read_at < FRESH_SECONDS

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
            await self._look_for_conditions()
            return
        async with self._reading:  # concurrent callers share the answer
            if now or not self.known:
                await self._read()

    async def refresh_claimed(self, run_ids: Sequence[str]) -> None:
        """Read the commands for runs that were just claimed: all commands, unless there are very many."""
        if self._is_large:
            await self.ask(run_ids)
            await self._look_for_conditions()
        else:
            await self.refresh(now=True)

    async def ask(self, run_ids: Sequence[str]) -> None:
        """Read the commands for some runs, and for the jobs and queues of this worker, however many others there are.

        Args:
            run_ids: the runs, for example those that were just claimed.
        """
        names = [*run_ids, *self._names]
        commands = [
            ("SMISMEMBER", keys.PAUSED, *names),
            ("SMISMEMBER", keys.CANCELLED, *names),
            ("ZMSCORE", keys.ABORT, *names),
            ("HMGET", keys.PACE, *names),
        ]
        try:
            answers = [check_answer(answer) for answer in await self._send(commands)]
        except RedisError as error:
            self._failed(error)
            return
        for command, values in zip(commands, answers, strict=True):
            if is_wrong_type(values):
                continue  # the next scan reports it
            read = to_pace if command[1] == keys.PACE else _is_member
            found = {name: read(value) for name, value in zip(names, values, strict=True)}
            self._answered.setdefault(command[1], {}).update(found)
        self._apply_answers()

    async def _look_for_conditions(self) -> None:
        """Read the commands by argument, which `ask` cannot ask for, while very many commands wait for their scan."""
        began = time.monotonic()
        is_told = self._listener is not None and self._listener.active
        if not self._is_large or self._failing or began < self._look_at or (is_told and not self._has_news):
            return
        self._has_news = False  # before the read: a change during the read is looked for again
        try:
            found = await find_conditions(self._send)
        except RedisError as error:
            self._failed(error)
            return
        self._look_at = time.monotonic() + _SCAN_REST * (time.monotonic() - began)
        known = {keys.PAUSED: self.paused, keys.CANCELLED: self._cancelled}
        for key, entries in found.items():
            gone = {name for name in known[key] if "?" in name and name not in entries}
            self._answered.setdefault(key, {}).update(dict.fromkeys(entries, True) | dict.fromkeys(gone, False))
        self._apply_answers()
        self._apply_conditions([])  # the next scan reports problems

    async def _read(self) -> None:
        began, scan = time.monotonic(), CommandScan()
        self._answered.clear()
        self._stale = False  # before the read: a change during the read marks the state stale again
        try:
            await scan.run(self._send, self._awaited)
        except RedisError as error:
            self._failed(error)
            return
        self._failing = False
        self._outage.answered(_READING)
        self._note_changes(scan)
        self._read_at = time.monotonic()
        self._is_large = scan.pages > 1
        if self._is_large:
            self._rest_until = self._read_at + _SCAN_REST * (self._read_at - began)
        self.are_jobs_awaited = scan.exists
        self.paused = _names(scan, keys.PAUSED, self.paused)
        self._cancelled = _names(scan, keys.CANCELLED, self._cancelled)
        self._aborted = _names(scan, keys.ABORT, self._aborted)
        self.cancelled = self._cancelled | self._aborted if self._obeys_aborts else self._cancelled
        self.drained = _names(scan, keys.DRAINED, self.drained)
        self.retried = _names(scan, keys.RETRIED, self.retried)
        self.parked = _names(scan, keys.PARKED, self.parked)
        self._limits = {key: _names(scan, key, names) for key, names in self._limits.items()}
        self.limited = frozenset().union(*self._limits.values())
        if keys.PACE not in scan.unreadable:
            self.paces = scan.paces
        self._apply_answers()
        self._apply_conditions(scan.problems)
        self._has_problems = bool(scan.problems)
        self._problems.report(scan.problems)

    def _note_changes(self, scan: CommandScan) -> None:
        """Note what operators have changed since the last scan."""
        before = {
            keys.PAUSED: self.paused,
            keys.CANCELLED: self._cancelled,
            keys.DRAINED: self.drained,
            keys.RETRIED: self.retried,
        }
        for key, names in before.items():
            self.changes.compare(key, names, _names(scan, key, names))
        if keys.PACE not in scan.unreadable:
            self.changes.compare_numbers(keys.PACE, self.paces, scan.paces)

    async def _send(self, commands: Sequence[Command]) -> Sequence[Any]:
        """Send commands, on the listener's connection if it is active, so that changes of their keys are reported."""
        if self._listener is not None and self._listener.active:
            return await self._listener.read(*commands)
        pipeline = self._redis.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return await pipeline.execute(raise_on_error=False)

    def _failed(self, error: RedisError) -> None:
        self._stale = True
        self._read_at = time.monotonic() + _RETRY_SECONDS
        self._failing = True
        self._outage.failed(_READING, error)

    def _apply_answers(self) -> None:
        """Apply what `ask` has read. An answer during a scan is newer than the scan's pages: apply it again then."""
        answered = self._answered
        self.paused = _changed(self.paused, answered.get(keys.PAUSED, {}))
        cancelled = _changed(self._cancelled, answered.get(keys.CANCELLED, {}))
        aborted = _changed(self._aborted, answered.get(keys.ABORT, {}))
        if cancelled is not self._cancelled or aborted is not self._aborted:
            self._cancelled, self._aborted = cancelled, aborted
            self.cancelled = cancelled | aborted if self._obeys_aborts else cancelled
        for name, pace in answered.get(keys.PACE, {}).items():
            if pace is None:
                self.paces.pop(name, None)
            else:
                self.paces[name] = pace
        if not self._reading.locked():
            answered.clear()

    def is_queue_paused(self, queue: str) -> bool:
        """Return whether a queue is paused."""
        return not self.paused.isdisjoint((queue, keys.ALL))

    def _apply_conditions(self, problems: list[KeyProblem]) -> None:
        """Read the conditions among the names, and report those that match no run of a known job."""
        self._paused_where = self._read_conditions(keys.PAUSED, self.paused, problems)
        self._cancelled_where = self._read_conditions(keys.CANCELLED, self._cancelled, problems)

    def _read_conditions(
        self, key: str, names: Iterable[str], problems: list[KeyProblem]
    ) -> dict[str, list[Condition]]:
        """Return the conditions among the entries of a set, by job. Report those that match no run of a known job."""
        found: dict[str, list[Condition]] = {}
        for name in [name for name in names if "?" in name]:
            job = name.partition("?")[0]
            if name in self._arguments or job not in self._arguments:
                continue
            try:
                condition = replace(parse_entry(name), stands_for=self._stands_for.get(job))
                condition.check_names(self._arguments[job])
            except InvalidArguments as error:
                problems.append(KeyProblem(key, f"has the entry {name!r}: {error}", ("SREM", key, name)))
            else:
                found.setdefault(job, []).append(condition)
        return found

    @property
    def may_have_orders(self) -> bool:
        """Whether there is a command for any run, or the commands must be read again first."""
        return bool(self.paused or self.cancelled or self._cancelled_where) or self.must_ask

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


def _names(scan: CommandScan, key: str, last: frozenset[str]) -> frozenset[str]:
    """Return the names in a key; those that were last read if it has another type."""
    return last if key in scan.unreadable else frozenset(scan.names[key])


def _is_member(answer: Any) -> bool:
    """Return whether an answer of SMISMEMBER or ZMSCORE says that the key has the name."""
    return answer not in (None, 0)


def _changed(names: frozenset[str], answers: Mapping[str, bool]) -> frozenset[str]:
    """Return names with those that were asked for added or removed; the same object if nothing changes."""
    added = {name for name, is_there in answers.items() if is_there and name not in names}
    removed = {name for name, is_there in answers.items() if not is_there and name in names}
    return (names | added) - removed if added or removed else names
