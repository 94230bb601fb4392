"""The cron lines of jobs: their next due times, and the last ones with their runs."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from worker.job.definition import Job
from worker.queue import keys
from worker.queue.decoding import read_time
from worker.queue.payload import derived_id
from worker.queue.run import Run
from worker.queue.run_reader import RunReader

if TYPE_CHECKING:
    from worker.ledger import Ledger

_MOST_DIGITS = 20


@dataclass(frozen=True)
class CronStatus:
    """A cron line of a job.

    Attributes:
        job: name of the job.
        line: the cron expression, and its time zone.
        next_at: the next due time.
        last_at: the last due time that was enqueued; None if there was none.
        run_id: id of its run; None if there was none.
        state: state of that run; `deleted` if neither Redis nor the ledger has it any more.
        seen_at: when a worker has first seen the line, if it was not due since; None otherwise, and without a ledger.
    """

    job: str
    line: str
    next_at: datetime
    last_at: datetime | None
    run_id: str | None
    state: str | None
    seen_at: datetime | None = None


async def list_cron_lines(
    reader: RunReader, jobs: Iterable[Job[..., Any]], *, queue: str, ledger: Ledger | None
) -> list[CronStatus]:
    """Return the cron lines of jobs, the next due one first.

    Args:
        reader: connection to Redis.
        jobs: the jobs.
        queue: their queue.
        ledger: the ledger, which remembers the last due times. Without it, they are those of `worker:cron` in Redis.
    """
    lines = [(job, str(line), line) for job in jobs for line in job.schedule]
    if not lines:
        return []
    now, seen = datetime.now(UTC), {}
    if ledger is not None:
        fired, application = await ledger.list_cron_firings(), await ledger.read_application()
        last = {key: (due, application) for key, due in fired.items() if not due.microsecond}
        # A line that was seen and not fired has the moment when it was first seen; due times are whole seconds.
        seen = {key: moment for key, moment in fired.items() if moment.microsecond}
    else:
        raw = await reader.command(cast(Awaitable[dict[bytes, bytes]], reader.redis.hgetall(keys.CRON)))
        last = _read_firings(raw, [(job.name, text) for job, text, _ in lines])
    found = []
    for job, text, line in lines:
        due, application = last.get((job.name, text), (None, ""))
        run_id = None if due is None else firing_id(job.name, text, due, application)
        state = None if run_id is None else await _state(reader, ledger, run_id, queue)
        first = seen.get((job.name, text))
        found.append(CronStatus(job.name, text, line.next_after(now), due, run_id, state, first))
    return sorted(found, key=lambda one: one.next_at)


def _read_firings(
    raw: Mapping[bytes, bytes], lines: Iterable[tuple[str, str]]
) -> dict[tuple[str, str], tuple[datetime, str]]:
    """Return the last due time of each line in `worker:cron`, with its application.

    If several applications have the line, the one that fired last counts: only the database knows which is ours.
    """
    last: dict[tuple[str, str], tuple[datetime, str]] = {}
    known = {f"{job} {line}": (job, line) for job, line in lines}
    for name, value in raw.items():
        guard, _, application = name.decode(errors="replace").rpartition(" @")
        key = known.get(guard)
        due = read_time(int(value) / 1000) if key and value.isdigit() and len(value) < _MOST_DIGITS else None
        if key and due and (key not in last or last[key][0] < due):
            last[key] = (due, application)
    return last


async def _state(reader: RunReader, ledger: Ledger | None, run_id: str, queue: str) -> str:
    """Return the state of a run from Redis, or else from the ledger."""
    state = await Run[Any](reader, run_id, queue, None).status()
    if state != "unknown":
        return state
    known = None if ledger is None else await ledger.find(run_id)
    return "deleted" if known is None else known.state


def firing_id(job: str, line: str, due: datetime, application: str) -> str:
    """Return the run id of a due time. It is the same in every worker of an application.

    Args:
        job: name of the job.
        line: its cron line.
        due: the due time.
        application: the name that `Ledger.read_application` returns.
    """
    mark = hashlib.sha256(f"{application} {line}".encode()).hexdigest()[:6]
    return derived_id("cron", f"cron:{job}:{mark}:{due.astimezone(UTC):%Y%m%dT%H%M%SZ}")


def trigger_id(job: str) -> str:
    """Return the run id of a cron job that is triggered now."""
    return derived_id("cron", f"cron:{job}:by-hand:{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
