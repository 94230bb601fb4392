"""The events of a run and of its orders, and the last runs of cron lines, as sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker.errors import InvalidPayload
from worker.queue.decoding import read_json
from worker.web.fields import read_number
from worker.web.job_views import CronView
from worker.web.page.text import clock, counted, duration, number
from worker.web.views import EventView

#: A run that begins this many seconds after its due time is late: before, workers may have been busy.
_LATE_SECONDS = 120.0
#: The fields of an event that have columns of their own.
_COLUMNS = frozenset({"event", "at", "run", "job", "worker", "by"})
_ORDERS = {
    "enqueue": "Enqueued",
    "pause": "Paused",
    "resume": "Resumed",
    "cancel": "Cancelled",
    "retry": "Enqueued again",
    "dead_letters_retry": "Enqueued again",
    "drain": "Worker drained",
    "cron_run": "Run now",
    "quarantine_retry": "Quarantined rows enqueued again",
    "quarantine_discard": "Quarantined rows deleted",
}


def describe(event: EventView, quarantined: int | None = None, *, attempt: str | None = None) -> str:
    """Return what an event says, as a sentence.

    Args:
        event: the event.
        quarantined: the rows of its run that are in quarantine, which the end of a run names.
        attempt: the number of the attempt that begins with it, if that is known.
    """
    fields = event.fields
    worker = fields.get("worker", "a worker")
    again = read_number(fields.get("delay_seconds"))
    later = f"; again in {duration(again)}" if again else ""
    error = fields.get("error", "")
    held = f"; {counted(quarantined, 'row', 'rows')} in quarantine" if quarantined else ""
    texts = {
        "started": f"Attempt {attempt or fields.get('attempt', '')} began on {worker}.",
        "resumed": f"{worker} took it over, behind row {number(read_number(fields.get('rows')))}.",
        "retry": f"The attempt failed: {error}{later}.",
        "drained": f"{worker} drained: the run went back to the queue.",
        "yielded": "It gave its slot to runs that waited.",
        "paused": "It paused between two batches.",
        "asleep": f"It sleeps{later}.",
        "stalled": f"No progress for {duration(read_number(fields.get('seconds')))}.",
        "lost": f"{worker} lost it: another worker has it.",
        "succeeded": f"It succeeded{held}.",
        "incomplete": f"It ended, and rows are left undone: {error}.",
        "dead": f"It failed for good: {error}.",
        "cancelled": "It was cancelled.",
    }
    return _describe_order(fields) if event.event == "ordered" else texts.get(event.event, event.event)


def _describe_order(fields: dict[str, str]) -> str:
    order, by = fields.get("order", "?"), fields.get("by", "?")
    details, targets = _read(fields.get("details"), {}), _read(fields.get("targets"), [])
    name = ", ".join(str(one) for one in targets[:3]) if isinstance(targets, list) else ""
    text = _ORDERS.get(order, order.capitalize())
    if order == "pace" and isinstance(details, dict):
        pace = read_number(details.get("rows_per_second"))
        text = "Pace removed" if pace is None else f"Pace set to {number(pace)} rows/s"
    return f"{text} by {by}{f' ({name})' if name else ''}."


def list_more(fields: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return name and text of the fields of an event that have no column; a list or object of an order as its parts."""
    found: list[tuple[str, str]] = []
    for name, text in fields.items():
        if name in _COLUMNS or text in ("", "{}"):
            continue
        value = _read(text, None) if name in ("targets", "details") else None
        if isinstance(value, list):
            found.append((name, ", ".join(map(str, value))))
        elif isinstance(value, dict):
            found += [(key, "none" if part is None else str(part)) for key, part in value.items()]
        else:
            found.append((name, text))
    return found


def _read(text: str | None, default: Any) -> Any:
    try:
        return read_json((text or "").encode(), "the order")
    except InvalidPayload:
        return default


def describe_last_run(line: CronView) -> list[str]:
    """Return the facts of the run of a cron line's last due time, and of a line that has not run the reason."""
    if line.last_at is None:
        return [_explain_first(line)]
    if line.last_state in (None, "deleted"):
        return ["its run was skipped or deleted, or ended too long ago"]
    found = [describe_lateness(line) if line.last_began_at is None else _describe_begin(line)]
    if line.last_finished_at is not None:
        found.append(f"ended {clock(line.last_finished_at)} UTC")
    if line.last_rows:
        found.append(counted(line.last_rows, "row", "rows"))
    return [text for text in found if text]


def describe_lateness(line: CronView) -> str:
    """Return how late the run of a cron line's last due time is; for a line that has not run, the reason."""
    if line.last_at is None:
        return _explain_first(line)
    if (line.late_seconds or 0.0) <= _LATE_SECONDS:
        return ""
    return f"{'not begun, ' if line.last_began_at is None else ''}{duration((line.late_seconds or 0) // 60 * 60)} late"


def _describe_begin(line: CronView) -> str:
    begin, late = line.last_began_at, describe_lateness(line)
    return "" if begin is None else f"began {clock(begin)} UTC{f', {late}' if late else ''}"


def _explain_first(line: CronView) -> str:
    if line.seen_at is None:
        return "no worker has seen this line yet"
    return f"this line is known only since {clock(line.seen_at)} UTC"


def describe_newest_run(line: CronView) -> str:
    """Return origin, begin, state and duration of the job's newest run; empty if it is that of the last due time."""
    run = line.newest_run
    if run is None or run.id == line.last_run:
        return ""
    origin = "by hand" if line.newest_by_hand else "by cron" if run.id.startswith("cron:") else "enqueued by code"
    took = "" if run.seconds is None else f", {duration(run.seconds)}"
    return f"{origin}, {clock(run.began_at)} UTC, {run.state}{took}"
