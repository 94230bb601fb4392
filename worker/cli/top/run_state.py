"""The state of a run for an operator, from its mirror, its worker and the operator commands."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from worker.cli.top.format import duration
from worker.cli.top.model import RunLine
from worker.queue import keys

ENDED = ("succeeded", "dead", "cancelled")


@dataclass(frozen=True)
class Orders:
    """The operator commands in Redis.

    Attributes:
        paused: Run ids, job names, queues, or `*`.
        cancelled: Run ids.
        drained: Names of workers.
    """

    paused: frozenset[str]
    cancelled: frozenset[str]
    drained: frozenset[str]

    def pausing(self, run_id: str, job: str, queue: str) -> str | None:
        """Return what pauses the run, in words; None if nothing does."""
        names = ((run_id, "the run"), (job, "its job"), (queue, "its queue"), (keys.ALL, "everything"))
        return next((f"{what} is paused" for name, what in names if name in self.paused), None)


def line_of(
    run_id: str,
    mirror: dict[str, str],
    orders: Orders,
    now: datetime,
    *,
    worker: str = "",
    worker_state: str | None = None,
    held_by: str | None = None,
) -> RunLine:
    """Return a run as the page shows it.

    Args:
        run_id: The id of the run.
        mirror: The fields of `worker:run:<id>`; empty before they were read.
        orders: The operator commands.
        now: The time of the server.
        worker: The worker that runs it; empty if none does.
        worker_state: The state of that worker.
        held_by: The limit under which the run waits for a place.
    """
    if worker:
        state, reason = _at_work(run_id, mirror, worker, worker_state, orders, now)
    else:
        state, reason = _idle(run_id, mirror, held_by, orders)
    working = bool(worker) and mirror.get("state") == "running"
    return RunLine(
        id=run_id,
        job=mirror.get("job", ""),
        worker=worker,
        queue=mirror.get("queue", ""),
        seconds=_since(mirror.get("started_at"), now) if worker else None,
        attempt=_whole(mirror.get("attempt")),
        takeovers=_whole(mirror.get("takeovers")) or 0,
        rows=_whole(mirror.get("rows")),
        rate=_number(mirror.get("rate")) if working and mirror.get("rows") else None,
        percent=_number(mirror.get("percent")),
        left_seconds=_number(mirror.get("eta_seconds")) if working else None,
        state=state,
        reason=reason,
    )


def _idle(run_id: str, mirror: dict[str, str], held_by: str | None, orders: Orders) -> tuple[str, str]:
    paused = orders.pausing(run_id, mirror.get("job", ""), mirror.get("queue", ""))
    error = mirror.get("error", "")
    if mirror.get("state") == "running":
        return "lost", "its worker is silent; another one takes it when the lease has run out"
    if run_id in orders.cancelled:
        return "cancelling", "when a worker comes to it"
    if mirror.get("state") == "paused" or paused:
        return "paused", paused or "goes on at once"
    if held_by is not None:
        return "waiting", f"for a place: no more of {held_by} at once"
    return "waiting", f"for another try: {error}" if error else ""


def _at_work(
    run_id: str, mirror: dict[str, str], worker: str, worker_state: str | None, orders: Orders, now: datetime
) -> tuple[str, str]:
    paused = orders.pausing(run_id, mirror.get("job", ""), mirror.get("queue", ""))
    if run_id in orders.cancelled:
        return "cancelling", "at its next batch boundary"
    if paused:
        return "pausing", paused
    if worker_state == "draining" or worker in orders.drained:
        return "draining", "goes back to the queue at its next batch boundary"
    if mirror.get("throttled"):
        since, until = _since(mirror.get("throttled_since"), now), _moment(mirror.get("throttled_until"))
        told = "" if since is None or since < 2 else f", for {duration(since)}"
        told += f", until {until.astimezone():%H:%M}" if until and (until - now).total_seconds() > 60 else ""
        return "throttled", mirror["throttled"] + told
    if mirror.get("stalled_since"):
        since = _since(mirror["stalled_since"], now)
        return "stalled", "no progress" + (f" for {duration(since)}" if since is not None else "")
    return "running", ""


def _moment(text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError:
        return None


def _since(text: str | None, now: datetime) -> float | None:
    moment = _moment(text)
    return None if moment is None or moment.tzinfo is None else max(0.0, (now - moment).total_seconds())


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None


def _whole(text: str | None) -> int | None:
    number = _number(text)
    return None if number is None else int(number)
