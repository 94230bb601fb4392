"""The cron lines, each with the run of its last due time: how it ended, and how late it began."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from worker.job.definition import Job
from worker.ledger.records import RunRecord
from worker.queue.audit import ORDERED
from worker.queue.cron_lines import CronStatus
from worker.web.attempts import Attempt, group_attempts
from worker.web.backend import Backend
from worker.web.event_hub import Message
from worker.web.event_kinds import ENDS
from worker.web.fields import Page, read_count, read_moment
from worker.web.job_history import find_newest_runs, list_ids_by_hand
from worker.web.job_views import CronView
from worker.web.operations import Call
from worker.web.run_cache import read_mirrors

_SECONDS = 5.0


@dataclass
class _LastRun:
    """The run of a line's last due time: what its events, its mirror and the ledger tell."""

    state: str
    began_at: datetime | None = None
    finished_at: datetime | None = None
    rows: int | None = None


async def list_cron(call: Call) -> Page[CronView]:
    """Return the cron lines, by their next due time."""
    backend = call.backend
    jobs = [job for job in (await backend.load_jobs()).values() if job.schedule]
    if not jobs:
        return Page[CronView](items=[])
    events = await backend.event_log.list_all()
    names = {job.name for job in jobs}
    # A run that has begun, ended or was ordered is shown at once, and not with the next event after some seconds.
    about = (one.id for one in events if one.fields.get("job") in names or one.fields.get("event") == ORDERED)
    key = ("cron", next(about, None))
    return await backend.reads.get(key, lambda: _list_cron(backend, jobs, events), seconds=_SECONDS)


async def _list_cron(backend: Backend, jobs: Sequence[Job[..., Any]], events: Sequence[Message]) -> Page[CronView]:
    lines = await backend.client.cron(jobs)
    ids = [one.run_id for one in lines if one.run_id is not None]
    newest, by_hand = find_newest_runs(events, {line.job for line in lines}), list_ids_by_hand(events)
    attempts, ends = group_attempts(events, ids), _find_ends(events, set(ids))
    mirrors = await read_mirrors(backend.client, ids)
    records = await backend.ledger.list_runs(ids=ids, limit=len(ids)) if ids else []
    recorded = {record.id: record for record in records}
    items = []
    for line in lines:
        run = None
        if line.run_id is not None:
            run = _LastRun(line.state or "deleted")
            _add_events(run, attempts[line.run_id], ends.get(line.run_id))
            run.began_at = run.began_at or read_moment(mirrors[line.run_id].get("started_at"))
            if line.run_id in recorded:
                _add_record(run, recorded[line.run_id])
        other = newest.get(line.job)
        view = _describe(line, run)
        items.append(
            view.model_copy(update={"newest_run": other, "newest_by_hand": other is not None and other.id in by_hand})
        )
    return Page[CronView](items=items)


def _find_ends(events: Sequence[Message], run_ids: set[str]) -> dict[str, Message]:
    """Return the last event of each run that has ended by it. The events are newest first."""
    newest: dict[str, Message] = {}
    for event in events:
        if event.run_id in run_ids:
            newest.setdefault(event.run_id, event)
    return {run_id: event for run_id, event in newest.items() if event.fields.get("event") in ENDS}


def _add_events(run: _LastRun, attempts: Sequence[Attempt], end: Message | None) -> None:
    if attempts:
        run.began_at = attempts[0].began
    if end is not None:
        run.finished_at, run.rows = read_moment(end.fields.get("at")), read_count(end.fields.get("rows"))
        if run.state == "deleted":  # its result has expired: the events are kept longer
            run.state = end.fields["event"]


def _add_record(run: _LastRun, record: RunRecord) -> None:
    run.began_at = min(at for at in (run.began_at, record.created_at) if at is not None)
    run.finished_at, run.rows = record.finished_at, record.rows


def _describe(line: CronStatus, run: _LastRun | None) -> CronView:
    late = None
    if line.last_at is not None and run is not None and (run.began_at is not None or run.state != "deleted"):
        is_over = run.began_at is None and run.state in ENDS
        begin = run.began_at or datetime.now(UTC)
        late = None if is_over else max(0.0, (begin - line.last_at).total_seconds())
    return CronView(
        job=line.job,
        line=line.line,
        next_at=line.next_at,
        seen_at=line.seen_at,
        last_at=line.last_at,
        last_run=line.run_id,
        last_state=None if run is None else run.state,
        last_began_at=None if run is None else run.began_at,
        last_finished_at=None if run is None else run.finished_at,
        late_seconds=late,
        last_rows=None if run is None else run.rows,
    )
