"""The mirror: the state of runs and workers in Redis, for `redis-cli` and the command line.

It is written from memory in one pipeline, at most twice a second, so neither the number of batches nor a slow Redis
delays a job. Of the jobs that start and succeed between two writes it shows the first few, and counts all: 10,000 jobs
a second cost no more than 50. No decision depends on the mirror, and the next write repairs a lost one.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import time
from collections import Counter, deque
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import RedisError

from worker.batch import Progress
from worker.observe.mirror_entry import PACE, MirrorEntry, encodable, escape, format_time, read_memory
from worker.observe.redis_writer import RedisWriter
from worker.queue import keys
from worker.queue.key_problems import wrong_value
from worker.queue.outage_log import OutageLog
from worker.queue.overview import read_worker
from worker.runtime.observer import Observer, RunInfo
from worker.settings import Settings

logger = logging.getLogger("longhaul.mirror")

WRITE_SECONDS = 0.5
_EVENTS_KEPT = 10_000
_EVENTS_WAITING = 5_000
_WRITING = "the mirror cannot be written"
_DEAD_WORKER_SECONDS = 60.0
_SHOWN_ERROR = 1_000
#: The largest number of runs to show that both start and succeed between two writes. All of them are counted.
_BRIEF_SHOWN = 25
#: A run without progress is shown at the first write after this time. Most runs have ended by then.
_YOUNG_SECONDS = 0.1
#: Longest time between two writes of an idle worker.
_SEEN_SECONDS = 2.0


class Mirror(Observer):
    """An `Observer` that writes to Redis.

    Args:
        redis: The connection to write to.
        settings: The settings, for the TTL of entries.
        name: The name of this worker.
        outage: The log of outages.
        code_version: The version of the jobs' code, by which workers recognise each other in a deploy.
    """

    def __init__(
        self, redis: Redis, settings: Settings, name: str, outage: OutageLog | None = None, code_version: str = ""
    ) -> None:
        self._redis = redis
        self._settings = settings
        self._name = name
        self._code_version = code_version
        self._entries: dict[str, MirrorEntry] = {}
        self._brief: list[tuple[MirrorEntry, float]] = []  # short runs that succeeded, and when
        self._counts: Counter[tuple[str, str]] = Counter()  # by job and state
        self._events: deque[dict[Any, Any]] = deque(maxlen=_EVENTS_WAITING)
        self._started_at = _now()
        self._done: Counter[str] = Counter()  # by queue
        self._state = "running"
        self._pruned_at = 0.0
        self._last_self = ""
        self._seen_at = 0.0
        self._writer = RedisWriter(redis, outage, _WRITING)

    # --- observed events

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
        """Note that an attempt starts."""
        known = self._entries.get(run.run_id)
        self._entries[run.run_id] = entry = MirrorEntry(run)
        entry.began = True
        # The entry of an earlier attempt, of this worker or of a dead one, stays until the end of this one is written.
        if run.attempt > 1 or (known is not None and known.shown):
            entry.shown = True

    def durable(self, run: RunInfo, *, attempt: int, takeovers: int, rows: int) -> None:
        """Note that the run is in the ledger."""
        entry = self._entry(run)
        entry.run = run._replace(attempt=attempt)  # the ledger counts from the last attempt that made progress
        self._start_entry(entry)
        entry.fields.update({"attempt": attempt, "takeovers": takeovers, "rows": rows})
        entry.pace.begin(entry.at_work(), rows)
        entry.changed = True
        if takeovers:
            self._event("resumed", run, rows=str(rows), takeovers=str(takeovers))

    def progressed(self, run: RunInfo, progress: Progress, *, rows: int) -> None:
        """Note that a batch was committed."""
        entry = self._changed_entry(run)
        now, share = entry.at_work(), progress.share
        if entry.values.get("step", progress.step) != progress.step:
            entry.pace.clear()
        hands = progress.ranges.hands if progress.ranges else 1
        entry.pace.note(now, rows, share, hands=hands, batch_rows=progress.batch_size)
        entry.fields.update(
            {
                "rows": rows,
                "step": progress.step,
                "step_rows": progress.rows,
                "stalled_since": "",
                "updated_at": _now(),
            }
        )
        entry.show_pace()
        if progress.batches or progress.ranges is None:  # else it tells of other hands
            entry.fields.update(
                {
                    "batches": progress.batches,
                    "batch_size": progress.batch_size,
                    "batch_ms": round(progress.batch_seconds * 1000, 1),
                    "last_key": str(progress.last_key),
                }
            )
        entry.note_ranges(progress.ranges)
        if progress.total:
            entry.fields["total"] = max(progress.total, progress.rows)
        if share is not None:
            entry.fields["percent"] = round(100 * share, 1)
            entry.fields["percent_is_estimate"] = "1" if progress.is_estimate else ""
            entry.fields["percent_by"] = progress.share_by or ""
        entry.changed = True

    def throttled(
        self, run: RunInfo, reason: str | None, *, since: datetime, until: datetime | None, kind: str = ""
    ) -> None:
        """Note that the walk waits, or continues."""
        entry = self._changed_entry(run)
        entry.note_wait(kind if reason else None)
        if reason and until and kind == PACE:
            entry.note_pace((until - datetime.now(UTC)).total_seconds())
        entry.fields.update(
            {
                "throttled": reason or "",
                "throttled_since": since.isoformat(timespec="seconds") if reason else "",
                "throttled_until": until.isoformat(timespec="seconds") if reason and until else "",
                "throttled_by": (kind or reason) if reason else "",
                "updated_at": _now(),
            }
        )
        entry.changed = True

    def note_span(self, run_id: str, span: str) -> None:
        """Note the span of an attempt, which the next attempt is linked to, even if this worker dies."""
        entry = self._entries.get(run_id)
        if entry is not None:
            entry.span = span
            if entry.values:
                entry.fields["span"] = span
                entry.changed = True

    def stalled(self, run: RunInfo, seconds: float) -> None:
        """Note that the run makes no progress."""
        entry = self._changed_entry(run)
        entry.fields["stalled_since"], entry.changed = format_time(time.time() - seconds), True
        self._event("stalled", run, seconds=f"{seconds:.0f}")

    def requeued(
        self, run: RunInfo, state: str, *, error: str | None = None, delay: float = 0.0, how: str = "released"
    ) -> None:
        """Note that the run goes back to the queue."""
        known = self._entries.get(run.run_id)
        was_running = known is not None and known.values.get("state") == "running"
        self._end(run, state, error)
        if was_running or error:
            kind = "retry" if error else "paused" if state == "paused" else how.replace("released", "drained")
            self._event(kind, run, error=error or "", delay_seconds=f"{delay:.1f}")

    def ended(self, run: RunInfo, state: str, *, error: str | None = None, result: Any = None) -> None:
        """Note that the run has ended."""
        self._counts[run.job, state] += 1
        self._done[run.queue] += 1
        known = self._entries.get(run.run_id)
        if known is not None and state == "succeeded" and not known.shown and not known.values:
            del self._entries[run.run_id]
            if len(self._brief) < _BRIEF_SHOWN:
                self._brief.append((known, time.time()))
            return
        entry = self._end(run, state, error)
        if state == "succeeded":
            entry.fields.pop("eta_seconds", None)
            if "percent" in entry.values:
                entry.fields["percent"] = 100.0
                entry.fields.update({"percent_is_estimate": "", "percent_by": ""})
        entry.fields["finished_at"] = _now()
        self._event(state, run, error=error or "", rows=str(entry.fields.get("rows", "")))

    def lost(self, run: RunInfo) -> None:
        """Record that another worker owns the run, and writes its entry from now on."""
        self._entries.pop(run.run_id, None)
        self._event("lost", run)

    # --- writing

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            await self.write()
            await asyncio.sleep(WRITE_SECONDS)

    async def write(self, *, final: bool = False) -> None:
        """Write the changed entries, and that this worker is alive."""
        young = time.time() - (0.0 if final else _YOUNG_SECONDS)
        written = [
            (run_id, entry)
            for run_id, entry in self._entries.items()
            if entry.changed and (entry.values or entry.started <= young)
        ]
        pipeline = self._redis.pipeline(transaction=True)  # atomic, so that nothing is counted twice
        self._add_entries(pipeline, [entry for _, entry in written])
        counts, self._counts = self._counts, Counter()
        for (job, state), number in counts.items():
            pipeline.hincrby(keys.JOBS, f"{escape(job)}:{state}", number)
        events = [self._events.popleft() for _ in range(len(self._events))]
        for event in events:
            pipeline.xadd(keys.EVENTS, encodable(event), maxlen=_EVENTS_KEPT, approximate=True)
        if not self._add_worker(pipeline, final=final):
            return
        if not await self._writer.execute(pipeline):
            self._counts += counts
            for _, entry in written:
                entry.changed = True
            self._last_self = ""
            self._events.extendleft(reversed(events))
            return
        for run_id, entry in written:
            if entry.ended and not entry.changed and self._entries.get(run_id) is entry:
                del self._entries[run_id]
        await self._prune()

    def _add_entries(self, pipeline: Pipeline, written: Sequence[MirrorEntry]) -> None:
        """Add to the pipeline the changed entries and those of short runs; both append events."""
        keep = max(60, round(self._settings.worker.result_ttl_seconds))
        for entry in written:
            self._start_entry(entry)
        for entry in written:
            key = keys.RUN + entry.run.run_id
            pipeline.hset(key, mapping=encodable(entry.fields))
            if entry.ended:
                pipeline.hdel(key, "eta_seconds")
                pipeline.expire(key, keep)
            else:
                pipeline.persist(key)
            entry.changed, entry.shown = False, True
        brief, self._brief = self._brief, []
        for entry, ended in brief:
            self._write_brief(pipeline, entry, ended, keep)

    def _add_worker(self, pipeline: Pipeline, *, final: bool) -> bool:
        """Add the entry of this worker to the pipeline.

        Returns:
            False if nothing has to be written: the pipeline is empty, and the worker's last entry is recent.
        """
        text = json.dumps(self._self(), sort_keys=True)
        if final:
            pipeline.hdel(keys.WORKERS, self._name)
        elif len(pipeline) or text != self._last_self or time.monotonic() - self._seen_at > _SEEN_SECONDS:
            self._last_self, self._seen_at = text, time.monotonic()
            live = {"seen_at": _now(), "memory_bytes": read_memory()}
            pipeline.hset(keys.WORKERS, self._name, json.dumps(self._self() | live))
        else:
            return False
        return True

    def worker_event(self, kind: str, state: str | None = None) -> None:
        """Note that this worker starts, drains or stops."""
        if state is not None:
            self._state = state
        self._events.append({"event": kind, "worker": self._name, "at": _now()})

    def _self(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "queue": self._settings.worker.queue,
            "queues": list(self._settings.worker.queues or [self._settings.worker.queue]),
            "code": self._code_version,
            "state": self._state,
            "jobs": [run_id for run_id, entry in self._entries.items() if not entry.ended],
            "max_jobs": self._settings.worker.max_jobs,
            "done": self._done.total(),
            "done_by_queue": dict(self._done),
            "started_at": self._started_at,
        }

    async def _prune(self) -> None:
        """Remove workers that have died."""
        if time.monotonic() - self._pruned_at >= _DEAD_WORKER_SECONDS:
            self._pruned_at = time.monotonic()
            try:
                await self._prune_workers()
            except RedisError as error:
                logger.debug("dead workers cannot be removed from the mirror error=%s", error)

    async def _prune_workers(self) -> None:
        known: dict[bytes, bytes] = await cast(Awaitable[Any], self._redis.hgetall(keys.WORKERS))
        for name, raw in known.items():
            worker = read_worker(raw)
            if worker is None:
                self._writer.problems.report([wrong_value(keys.WORKERS, raw, field=name)])
            elif (datetime.now(UTC) - worker["seen_at"]).total_seconds() > _DEAD_WORKER_SECONDS:
                await cast(Awaitable[int], self._redis.hdel(keys.WORKERS, name))  # type: ignore[arg-type]

    def _entry(self, run: RunInfo) -> MirrorEntry:
        return self._entries.get(run.run_id) or self._entries.setdefault(run.run_id, MirrorEntry(run))

    def _changed_entry(self, run: RunInfo) -> MirrorEntry:
        """Return a run's entry, with its own copy of the values."""
        entry = self._entry(run)
        self._start_entry(entry)
        return entry

    def _start_entry(self, entry: MirrorEntry) -> None:
        if not entry.values:
            entry.values = entry.first_values(self._name)
            if entry.began:
                self._event("started", entry.run, attempt=str(entry.run.attempt), at=format_time(entry.started))

    def _write_brief(self, pipeline: Pipeline, entry: MirrorEntry, ended: float, keep: int) -> None:
        """Write a run that started and succeeded between two writes."""
        run, at = entry.run, format_time(ended)
        values = entry.first_values(self._name) | {"state": "succeeded", "finished_at": at, "updated_at": at, "rate": 0}
        pipeline.hset(keys.RUN + run.run_id, mapping=encodable(values))
        pipeline.expire(keys.RUN + run.run_id, keep)
        self._event("started", run, attempt=str(run.attempt), at=format_time(entry.started))
        self._event("succeeded", run, at=at)

    def _end(self, run: RunInfo, state: str, error: str | None) -> MirrorEntry:
        entry = self._changed_entry(run)
        entry.fields.update(
            {"job": run.job, "state": state, "error": (error or "")[:_SHOWN_ERROR], "updated_at": _now()}
        )
        entry.fields["rate"] = 0
        if entry.values.get("throttled"):
            ended = ("throttled", "throttled_since", "throttled_until", "throttled_by")
            entry.fields.update(dict.fromkeys(ended, ""))
        entry.ended = True  # for this worker; the next owner's writes keep the entry in Redis
        entry.changed = True
        return entry

    def _event(self, kind: str, run: RunInfo, **more: str) -> None:
        self._events.append(
            {"event": kind, "run": run.run_id, "job": run.job, "worker": self._name, "at": _now()}
            | {name: value[:_SHOWN_ERROR] for name, value in more.items() if value}
        )


def _now() -> str:
    return format_time(time.time())
