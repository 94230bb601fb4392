"""The state of a run for operators, from its mirror, its worker and the operator commands."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

from worker.cli.top.format import duration
from worker.cli.top.model import RunLine
from worker.queue import keys
from worker.queue.decoding import read_time

ENDED = ("succeeded", "incomplete", "dead", "cancelled")


@dataclass(frozen=True)
class Commands:
    """The operator commands in force.

    Attributes:
        paused: Run ids, job names, queues, or `*`.
        cancelled: Run ids.
        drained: Names of workers.
    """

    paused: frozenset[str]
    cancelled: frozenset[str]
    drained: frozenset[str]

    def describe_pause(self, run_id: str, job: str, queue: str) -> str | None:
        """Return a description of the pause that applies to a run, or None."""
        names = ((run_id, "the run"), (job, "its job"), (queue, "its queue"), (keys.ALL, "everything"))
        return next((f"{what} is paused" for name, what in names if name in self.paused), None)


def build_run_line(
    run_id: str,
    mirror: dict[str, str],
    commands: Commands,
    now: datetime,
    *,
    worker: str = "",
    worker_state: str | None = None,
    held_by: str | None = None,
) -> RunLine:
    """Return a run for the page.

    Args:
        run_id: Id of the run.
        mirror: Fields of `worker:run:<id>`; empty before they were read.
        commands: The operator commands in force.
        now: Time of the server.
        worker: The worker that runs it, or an empty text.
        worker_state: State of that worker.
        held_by: The limit under which it waits for a place.
    """
    if worker:
        state, reason = _describe_running(run_id, mirror, worker, worker_state, commands, now)
    else:
        state, reason = _describe_idle(run_id, mirror, held_by, commands)
    runs = bool(worker) and mirror.get("state") == "running"
    return RunLine(
        id=run_id,
        job=mirror.get("job", ""),
        worker=worker,
        queue=mirror.get("queue", ""),
        seconds=_seconds_since(mirror.get("started_at"), now) if worker else None,
        attempt=_whole(mirror.get("attempt")),
        takeovers=_whole(mirror.get("takeovers")) or 0,
        rows=_whole(mirror.get("rows")),
        rate=_number(mirror.get("rate")) if runs and mirror.get("rows") else None,
        percent=_number(mirror.get("percent")),
        left_seconds=_number(mirror.get("eta_seconds")) if runs else None,
        state=state,
        reason=reason,
        is_estimate=bool(mirror.get("percent_is_estimate")),
    )


def _describe_idle(run_id: str, mirror: dict[str, str], held_by: str | None, commands: Commands) -> tuple[str, str]:
    paused = commands.describe_pause(run_id, mirror.get("job", ""), mirror.get("queue", ""))
    error = mirror.get("error", "")
    if mirror.get("state") == "running":
        return "lost", "its worker is silent; another one takes it over when the lease has expired"
    if run_id in commands.cancelled:
        return "cancelling", "when a worker claims it"
    if mirror.get("state") == "paused" or paused:
        return "paused", paused or "resumes at once"
    if held_by is not None:
        return "waiting", f"for a place: no more of {held_by} at once"
    return "waiting", f"for another attempt: {error}" if error else ""


def _describe_running(
    run_id: str, mirror: dict[str, str], worker: str, worker_state: str | None, commands: Commands, now: datetime
) -> tuple[str, str]:
    paused = commands.describe_pause(run_id, mirror.get("job", ""), mirror.get("queue", ""))
    if run_id in commands.cancelled:
        return "cancelling", "at its next batch boundary"
    if paused:
        return "pausing", paused
    if worker_state == "draining" or worker in commands.drained:
        return "draining", "goes back to the queue at its next batch boundary"
    if mirror.get("throttled"):
        since, until = _seconds_since(mirror.get("throttled_since"), now), _moment(mirror.get("throttled_until"))
        details = "" if since is None or since < 2 else f", for {duration(since)}"
        details += f", until {until.astimezone():%H:%M}" if until and (until - now).total_seconds() > 60 else ""
        return "throttled", mirror["throttled"] + details
    if mirror.get("stalled_since"):
        since = _seconds_since(mirror["stalled_since"], now)
        return "stalled", "no progress" + (f" for {duration(since)}" if since is not None else "")
    return "running", ""


def _moment(text: str | None) -> datetime | None:
    return read_time(text)


def _seconds_since(text: str | None, now: datetime) -> float | None:
    moment = _moment(text)
    return None if moment is None else max(0.0, (now - moment).total_seconds())


def _number(text: str | None) -> float | None:
    try:
        number = float(text) if text else None
    except ValueError:
        return None
    return number if number is not None and math.isfinite(number) else None


def _whole(text: str | None) -> int | None:
    number = _number(text)
    return None if number is None else int(number)
