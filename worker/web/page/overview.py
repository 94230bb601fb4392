"""The overview: queues, workers, what runs, what failed, what waits and why, and cron."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from worker.errors import RegistrationError
from worker.web.job_views import CronView
from worker.web.page.sentences import describe_lateness, describe_newest_run
from worker.web.page.text import counted, duration
from worker.web.page.visit import Visit
from worker.web.queue_reads import find_timeout
from worker.web.views import (
    DeadLetterView,
    EndedRunView,
    HistoryView,
    LimitView,
    OverviewView,
    QueueHistoryView,
    RunView,
    WorkerView,
)

_FAILURES_READ = 100
_FAILURES_SHOWN = 6
_VARYING = re.compile(r"[0-9][0-9.,:-]*|'[^']*'|\"[^\"]*\"")
_DAY = timedelta(hours=24)
_LONG_SECONDS = 600.0


@dataclass(frozen=True)
class Notice:
    """Something that waits, or that needs a look.

    Attributes:
        state: its kind, which gives shape and colour.
        name: the run, job, queue or worker.
        text: why.
        view: the view that has more of it, with its parameters; None for none.
        values: the parameters.
        at: since when; None if that is not known.
    """

    state: str
    name: str
    text: str
    view: str | None = None
    values: Mapping[str, Any] = field(default_factory=dict)
    at: datetime | None = None


async def load_overview(visit: Visit) -> dict[str, Any]:
    """Return the values of `overview.html`."""
    overview: OverviewView = await visit.read("show_overview")
    history: HistoryView = await visit.read("show_history")
    letters: list[DeadLetterView] = (await visit.read("list_dead_letters", limit=_FAILURES_READ)).items
    ended: list[EndedRunView] = (await visit.read("list_ended")).items
    limits: list[LimitView] = (await visit.read("list_limits")).items
    cron: list[CronView] | None = None
    with contextlib.suppress(RegistrationError):  # the jobs cannot be imported here: all else is shown
        cron = (await visit.read("list_cron")).items
    active = [run for run in overview.runs if run.state == "running" and run.helps is None]
    active.sort(key=lambda run: (-(run.eta_seconds or 0), run.percent if run.percent is not None else 101, run.id))
    return {
        "overview": overview,
        "history": {queue.name: queue for queue in history.queues},
        "since": history.since,
        "totals": _sum_up(overview, history),
        "active": active,
        "coming": [run for run in overview.runs if run.state != "running" and run.helps is None],
        "ended": ended,
        "why": {run.id: explain_wait(run, overview.paused, limits) for run in overview.runs},
        "spans": await _describe_spans(visit, active, overview.at),
        "notices": list_notices(overview, limits),
        "failures": _group([letter for letter in letters if datetime.now(UTC) - letter.at <= _DAY]),
        "read": len(letters),
        "cron": cron,
        "late_notes": {(one.job, one.line): describe_lateness(one) for one in cron or ()},
        "newest": {(one.job, one.line): describe_newest_run(one) for one in cron or ()},
    }


async def _describe_spans(visit: Visit, runs: Sequence[RunView], now: datetime) -> dict[str, str]:
    """Return how much of its timeout each run has used, by id. A run with a durable loop has none."""
    found: dict[str, str] = {}
    with contextlib.suppress(RegistrationError):
        jobs = await visit.backend.load_jobs()
        for run in runs:
            job = jobs.get(run.job)
            if job is not None and run.started_at is not None and not run.in_ledger:
                timeout = find_timeout(job, visit.backend.settings)
                found[run.id] = describe_span(max(0.0, (now - run.started_at).total_seconds()), timeout)
    return found


def describe_span(seconds: float, timeout: float) -> str:
    """Return how much of its timeout an attempt has used: `4 of 300 s until its timeout`."""
    used = (
        f"{seconds:.0f} of {timeout:g} s" if timeout < _LONG_SECONDS else f"{duration(seconds)} of {duration(timeout)}"
    )
    return f"{used} until its timeout"


def _group(letters: Sequence[DeadLetterView]) -> list[tuple[DeadLetterView, int]]:
    """Return the newest letter of each job and kind of error, and how many are of the kind: figures do not count."""
    groups: dict[tuple[str, str], list[DeadLetterView]] = {}
    for letter in letters:
        groups.setdefault((letter.job, _VARYING.sub("#", letter.error[:200])), []).append(letter)
    return [(group[0], len(group)) for group in list(groups.values())[:_FAILURES_SHOWN]]


def _sum_up(overview: OverviewView, history: HistoryView) -> dict[str, Any]:
    alive = [worker for worker in overview.workers if worker.state != "lost"]
    taken = sum(queue.running for queue in overview.queues)
    return {
        "running": max(0, taken - sum(run.state == "running" and run.helps is not None for run in overview.runs)),
        "taken": taken,
        "slots": sum(worker.max_jobs or 0 for worker in alive),
        "waiting": sum(queue.waiting for queue in overview.queues),
        "deferred": sum(queue.deferred for queue in overview.queues),
        "workers": len(alive),
        "ended_per_minute": _last_minute(history.queues),
    }


def _last_minute(queues: Sequence[QueueHistoryView]) -> float | None:
    """Return the runs that ended in a minute, over the last five that are known."""
    known = [minute.ended for queue in queues for minute in queue.minutes[-6:-1] if minute is not None]
    spans = max((sum(one is not None for one in queue.minutes[-6:-1]) for queue in queues), default=0)
    return sum(known) / spans if spans else None


def explain_wait(run: RunView, paused: Sequence[str], limits: Sequence[LimitView]) -> tuple[str, str] | None:
    """Return the kind and the reason of a wait; None if the run does not wait for anything but a slot."""
    if run.stalled_since is not None:
        return "stalled", "no progress"
    if run.throttled:
        return "throttled", run.throttled
    for name in (run.id, run.job, run.queue, "*"):
        if name in paused and run.state == "running":
            return "paused", _describe_pending_pause(run)
        if name in paused:
            what = {run.id: "this run", run.job: "the job", "*": "everything"}.get(str(name), "the queue")
            return "paused", f"{what} is paused"
    limit = next((one for one in limits if one.name == run.job), None)
    if run.state in ("waiting", "deferred") and limit is not None and limit.held:
        most = limit.concurrency or limit.job_concurrency
        if most is not None:
            return "held", f"waits for a place: {limit.running} of {most} taken"
        return "held", f"waits for its rate: {limit.rate_per_second or limit.job_rate}/s"
    return None


def _describe_pending_pause(run: RunView) -> str:
    """Return what a pause means for a run that a worker still has: it acts where the run looks for orders."""
    return f"works until the pause acts, at its next {'batch' if run.in_ledger else 'attempt or batch'}"


def list_notices(overview: OverviewView, limits: Sequence[LimitView]) -> list[Notice]:
    """Return what is lost, stalled, paused, throttled or held back, the most urgent first."""
    runs = {run.id: run for run in overview.runs}
    found = [_describe_lost(worker) for worker in overview.workers if worker.state == "lost"]
    found += [_describe_run(run, "stalled", "no progress") for run in overview.runs if run.stalled_since is not None]
    for queue in overview.queues:
        if queue.waiting and not any(one.queue == queue.name and one.state == "running" for one in overview.workers):
            waiting = counted(queue.waiting, "run waits", "runs wait")
            text = f"{waiting}, and no worker takes {'it' if queue.waiting == 1 else 'them'}"
            found.append(Notice("lost", queue.name, text, at=queue.oldest_due_at))
    for name in overview.paused:
        text = "everything is paused" if name == "*" else "paused by an operator"
        if name in runs and runs[name].state == "running":
            text = _describe_pending_pause(runs[name])
        found.append(_describe_run(runs[name], "paused", text) if name in runs else Notice("paused", name, text))
    found += [
        _describe_run(run, "throttled", run.throttled)
        for run in overview.runs
        if run.throttled and run.stalled_since is None and run.helps is None
    ]
    for limit in limits:
        if limit.held:
            most = limit.concurrency or limit.job_concurrency
            rate = limit.rate_per_second or limit.job_rate
            places = f"at most {most} at once, {limit.running} running" if most else f"its rate is {rate}"
            text = f"{counted(limit.held, 'run waits', 'runs wait')}: {places}"
            found.append(Notice("held", limit.name, text, "limits", {"search": limit.name}))
    found += [
        Notice("draining", worker.name, f"ends after its {counted(len(worker.jobs), 'run', 'runs')}")
        for worker in overview.workers
        if worker.state == "draining"
    ]
    return found


def _describe_run(run: RunView, state: str, text: str) -> Notice:
    since = run.stalled_since if state == "stalled" else None
    return Notice(state, run.id, text, "run", {"run_id": run.id}, since)


def _describe_lost(worker: WorkerView) -> Notice:
    text = "is silent; others take over its runs" if worker.jobs else "is silent"
    return Notice("lost", worker.name, text, at=worker.seen_at)
