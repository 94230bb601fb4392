"""The mirror: what runs and workers do, in Redis, for `redis-cli`, the command line and whoever likes to look.

Written from memory in one pipeline, twice a second at most, so that neither the number of batches nor a slow Redis
holds a job up. Of jobs that begin and succeed between two writes it shows the first few, and counts all of them: ten
thousand a second cost it no more than fifty. It is a mirror only: nothing reads it to decide anything, and a lost write
is made good by the next.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Awaitable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from worker.batch import Progress
from worker.queue import keys
from worker.queue.outage_log import OutageLog
from worker.runtime.observer import Observer, RunInfo
from worker.settings import Settings

logger = logging.getLogger("longhaul.mirror")

WRITE_SECONDS = 0.5
_EVENTS_KEPT = 10_000
_EVENTS_WAITING = 5_000
_WRITING = "the mirror cannot be written"
_DEAD_WORKER_SECONDS = 60.0
_SHOWN_ERROR = 1_000
_RATE_SECONDS = 5.0
#: Runs that begin and succeed between two writes are shown up to this number; all of them are counted.
_BRIEF_SHOWN = 25
#: A run that has nothing to tell is shown at the first write after this time: most have ended by then.
_YOUNG_SECONDS = 0.1
#: Longest time, in seconds, for which a worker that does nothing says nothing.
_SEEN_SECONDS = 2.0


class _Line:
    """One run as the mirror shows it; made into values only when it is written."""

    # What holds for nearly all is held by the class: most runs have ended before anybody looks.
    values: Mapping[str, str | int | float] = MappingProxyType({})
    changed = True
    ended = False
    #: Whether Redis has it, or may have it of another try.
    shown = False
    throttled_seconds = 0.0
    throttled_at: float | None = None

    def __init__(self, run: RunInfo) -> None:
        self.run = run
        self.started = time.time()

    @cached_property
    def marks(self) -> deque[tuple[float, int, float | None]]:
        """Moments with the rows and the share that were done: seconds at work, without those that a throttle took."""
        return deque(maxlen=40)

    @property
    def told(self) -> dict[str, str | int | float]:
        """The values of one that has some."""
        assert isinstance(self.values, dict)  # noqa: S101
        return self.values

    def first_values(self, worker: str) -> dict[str, str | int | float]:
        """Return what a run shows from its beginning on."""
        run = self.run
        return {
            "job": run.job,
            "state": "running",
            "worker": worker,
            "queue": run.queue,
            "attempt": run.attempt,
            "started_at": _at(self.started),
            "error": "",
        }

    def at_work(self) -> float:
        """Return a clock that stands while the walk is throttled."""
        now = time.monotonic() if self.throttled_at is None else self.throttled_at
        return now - self.throttled_seconds

    def seconds_left(self, now: float, share: float) -> float | None:
        """Return the time that the rest takes at the pace of the last marks; None where that cannot be told."""
        for then, _, before in self.marks:
            if before is not None and share > before:
                return (1 - share) * (now - then) / (share - before)
        return None


class Mirror(Observer):
    """An `Observer` that writes to Redis.

    Args:
        redis: its connection.
        settings: for the life of what it writes.
        name: name of this worker.
        outage: says that Redis is away.
    """

    def __init__(self, redis: Redis, settings: Settings, name: str, outage: OutageLog | None = None) -> None:
        self._redis = redis
        self._settings = settings
        self._name = name
        self._lines: dict[str, _Line] = {}
        self._brief: list[tuple[_Line, float]] = []  # short runs that have succeeded, and when
        self._counts: Counter[tuple[str, str]] = Counter()  # by job and state
        self._events: deque[dict[Any, Any]] = deque(maxlen=_EVENTS_WAITING)
        self._started_at = _now()
        self._done = 0
        self._state = "running"
        self._outage = outage or OutageLog()
        self._pruned_at = 0.0
        self._told_of_self = ""
        self._seen_at = 0.0

    # --- what it hears

    def worker_started(self) -> None:
        """The worker starts."""
        self.worker_event("worker_started")

    def worker_stopped(self) -> None:
        """The worker has run its last job."""
        self.worker_event("worker_stopped", "stopped")

    async def close(self) -> None:
        """Write the last changes."""
        await self.write(final=True)

    def started(self, run: RunInfo) -> None:
        """A try begins."""
        known = self._lines.get(run.run_id)
        self._lines[run.run_id] = line = _Line(run)
        # What an earlier try has shown, here or in a worker that has died, stays until the end of this one is written.
        if run.attempt > 1 or (known is not None and known.shown):
            line.shown = True

    def durable(self, run: RunInfo, *, attempt: int, takeovers: int, rows: int) -> None:
        """The run is in the ledger."""
        line = self._told(run)
        line.told.update({"attempt": attempt, "takeovers": takeovers, "rows": rows})
        line.marks.append((line.at_work(), rows, 0.0 if rows == 0 else None))
        line.changed = True
        if takeovers:
            self._event("resumed", run, rows=str(rows), takeovers=str(takeovers))

    def progressed(self, run: RunInfo, progress: Progress, *, rows: int) -> None:
        """A batch was committed."""
        line = self._told(run)
        now, share = line.at_work(), progress.share
        if line.values.get("step", progress.step) != progress.step:
            line.marks.clear()  # the share is that of another loop
        # Old marks go, but never the last one before the window: a slow loop has a rate too.
        while len(line.marks) > 1 and line.marks[1][0] < now - _RATE_SECONDS:
            line.marks.popleft()
        if not line.marks or now - line.marks[-1][0] > _RATE_SECONDS / 40:
            line.marks.append((now, rows, share))
        began, rows_then, _ = line.marks[0]
        rate = (rows - rows_then) / (now - began) if now > began else 0.0
        line.told.update(
            {
                "rows": rows,
                "step": progress.step,
                "step_rows": progress.rows,
                "batches": progress.batches,
                "batch_size": progress.batch_size,
                "batch_ms": round(progress.batch_seconds * 1000, 1),
                "last_key": str(progress.last_key),
                "stalled_since": "",
                "rate": round(rate, 1),
                "updated_at": _now(),
            }
        )
        if progress.total:
            line.told["total"] = max(progress.total, progress.rows)
        if share is not None:
            line.told["percent"] = round(100 * share, 1)
            left = line.seconds_left(now, share)
            if left is not None:
                line.told["eta_seconds"] = round(left)
        line.changed = True

    def throttled(self, run: RunInfo, reason: str | None, *, since: datetime, until: datetime | None) -> None:
        """The walk waits, or goes on."""
        line = self._told(run)
        if reason and line.throttled_at is None:
            line.throttled_at = time.monotonic()
        elif not reason and line.throttled_at is not None:
            line.throttled_seconds += time.monotonic() - line.throttled_at
            line.throttled_at = None
            line.told["throttled_seconds"] = round(line.throttled_seconds, 1)
        line.told.update(
            {
                "throttled": reason or "",
                "throttled_since": since.isoformat(timespec="seconds") if reason else "",
                "throttled_until": until.isoformat(timespec="seconds") if reason and until else "",
                "updated_at": _now(),
            }
        )
        line.changed = True

    def stalled(self, run: RunInfo, seconds: float) -> None:
        """The run makes no progress."""
        line = self._told(run)
        line.told["stalled_since"] = _at(time.time() - seconds)
        line.changed = True
        self._event("stalled", run, seconds=f"{seconds:.0f}")

    def requeued(self, run: RunInfo, state: str, *, error: str | None = None, delay: float = 0.0) -> None:
        """The run goes back to the queue."""
        known = self._lines.get(run.run_id)
        was_running = known is not None and known.values.get("state") == "running"
        self._end(run, state, error)
        if was_running or error:
            kind = "retry" if error else {"paused": "paused"}.get(state, "drained")
            self._event(kind, run, error=error or "", delay_seconds=f"{delay:.1f}")

    def ended(self, run: RunInfo, state: str, *, error: str | None = None, result: Any = None) -> None:
        """The run has ended."""
        self._counts[run.job, state] += 1
        self._done += 1
        known = self._lines.get(run.run_id)
        if known is not None and state == "succeeded" and not known.shown and not known.values:
            del self._lines[run.run_id]
            if len(self._brief) < _BRIEF_SHOWN:
                self._brief.append((known, time.time()))
            return
        line = self._end(run, state, error)
        if state == "succeeded":
            line.told.pop("eta_seconds", None)
            if "percent" in line.values:
                line.told["percent"] = 100.0
        line.told["finished_at"] = _now()
        self._event(state, run, error=error or "")

    def lost(self, run: RunInfo) -> None:
        """Another worker has the run, and writes its line now."""
        self._lines.pop(run.run_id, None)
        self._event("lost", run)

    # --- what it writes

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self.write()
            await asyncio.sleep(WRITE_SECONDS)

    async def write(self, *, final: bool = False) -> None:
        """Write what has changed, and that this worker lives."""
        pipeline = self._redis.pipeline(transaction=True)  # all of it, or nothing: counts are not told twice
        keep = max(60, round(self._settings.worker.result_ttl_seconds))
        young = time.time() - (0.0 if final else _YOUNG_SECONDS)
        written = [
            (run_id, line)
            for run_id, line in self._lines.items()
            if line.changed and (line.values or line.started <= young)
        ]
        for _, line in written:
            self._tell(line)
        for run_id, line in written:
            key = keys.RUN + run_id
            pipeline.hset(key, mapping=line.told)
            if line.ended:
                pipeline.hdel(key, "eta_seconds")
                pipeline.expire(key, keep)
            else:
                pipeline.persist(key)
            line.changed, line.shown = False, True
        brief, self._brief = self._brief, []
        for line, ended in brief:
            self._write_brief(pipeline, line, ended, keep)
        counts, self._counts = self._counts, Counter()
        for (job, state), number in counts.items():
            pipeline.hincrby(keys.JOBS, f"{job}:{state}", number)
        events = [self._events.popleft() for _ in range(len(self._events))]
        for event in events:
            pipeline.xadd(keys.EVENTS, event, maxlen=_EVENTS_KEPT, approximate=True)
        told = json.dumps(self._self(), sort_keys=True)
        if final:
            pipeline.hdel(keys.WORKERS, self._name)
        elif len(pipeline) or told != self._told_of_self or time.monotonic() - self._seen_at > _SEEN_SECONDS:
            self._told_of_self, self._seen_at = told, time.monotonic()
            pipeline.hset(keys.WORKERS, self._name, json.dumps(self._self() | {"seen_at": _now()}))
        else:
            return
        try:
            await pipeline.execute()
        except RedisError as error:
            self._outage.failed(_WRITING, error)
            self._counts += counts
            for _, line in written:
                line.changed = True
            self._told_of_self = ""
            self._events.extendleft(reversed(events))
            return
        self._outage.answered(_WRITING)
        for run_id, line in written:
            if line.ended and not line.changed and self._lines.get(run_id) is line:
                del self._lines[run_id]
        await self._prune()

    def worker_event(self, kind: str, state: str | None = None) -> None:
        """Note that this worker starts, drains or stops."""
        if state is not None:
            self._state = state
        self._events.append({"event": kind, "worker": self._name, "at": _now()})

    def _self(self) -> dict[str, Any]:
        running = [run_id for run_id, line in self._lines.items() if not line.ended]
        return {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "queue": self._settings.worker.queue,
            "state": self._state,
            "jobs": running,
            "max_jobs": self._settings.worker.max_jobs,
            "done": self._done,
            "started_at": self._started_at,
        }

    async def _prune(self) -> None:
        """Forget workers that have died without a word."""
        if time.monotonic() - self._pruned_at < _DEAD_WORKER_SECONDS:
            return
        self._pruned_at = time.monotonic()
        try:
            await self._prune_workers()
        except RedisError as error:
            logger.debug("workers that have died stay in the mirror: %s", error)

    async def _prune_workers(self) -> None:
        known: dict[bytes, bytes] = await cast(Awaitable[Any], self._redis.hgetall(keys.WORKERS))
        for name, raw in known.items():
            try:
                seen = datetime.fromisoformat(json.loads(raw)["seen_at"])
            except (ValueError, KeyError, TypeError):
                continue  # not ours
            if (datetime.now(UTC) - seen).total_seconds() > _DEAD_WORKER_SECONDS:
                await cast(Awaitable[int], self._redis.hdel(keys.WORKERS, name.decode()))

    def _line(self, run: RunInfo) -> _Line:
        return self._lines.get(run.run_id) or self._lines.setdefault(run.run_id, _Line(run))

    def _told(self, run: RunInfo) -> _Line:
        """Return a run's line, from now on one that is told of."""
        line = self._line(run)
        self._tell(line)
        return line

    def _tell(self, line: _Line) -> None:
        if not line.values:
            line.values = line.first_values(self._name)
            self._event("started", line.run, attempt=str(line.run.attempt), at=_at(line.started))

    def _write_brief(self, pipeline: Any, line: _Line, ended: float, keep: int) -> None:
        """Write a run that began and succeeded between two writes: of many of them, the first few."""
        run, at = line.run, _at(ended)
        values = line.first_values(self._name) | {"state": "succeeded", "finished_at": at, "updated_at": at, "rate": 0}
        pipeline.hset(keys.RUN + run.run_id, mapping=values)
        pipeline.expire(keys.RUN + run.run_id, keep)
        self._event("started", run, attempt=str(run.attempt), at=_at(line.started))
        self._event("succeeded", run, at=at)

    def _end(self, run: RunInfo, state: str, error: str | None) -> _Line:
        line = self._told(run)
        line.told.update({"job": run.job, "state": state, "error": (error or "")[:_SHOWN_ERROR], "updated_at": _now()})
        line.told["rate"] = 0
        if line.values.get("throttled"):
            line.told.update({"throttled": "", "throttled_since": "", "throttled_until": ""})
        line.ended = True  # for this worker; the next owner's writes keep the line in Redis
        line.changed = True
        return line

    def _event(self, kind: str, run: RunInfo, **more: str) -> None:
        self._events.append(
            {"event": kind, "run": run.run_id, "job": run.job, "worker": self._name, "at": _now()}
            | {name: value[:_SHOWN_ERROR] for name, value in more.items() if value}
        )


def _now() -> str:
    return _at(time.time())


def _at(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds")
