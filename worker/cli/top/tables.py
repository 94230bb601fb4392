"""Turns a frame into tables, for the live page and for the printed one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from worker.cli.top.format import bar, duration, number, per_second, plain, sparks
from worker.cli.top.model import Frame, Hold, JobLine, QueueLine, RunLine, WorkerLine
from worker.queue.dead_letters import DeadLetter

Name = Literal["queues", "jobs", "runs", "holds", "workers", "failures"]
Tone = Literal["", "good", "warn", "bad", "dim"]

_BAR = 10
_SPARKS = 30
_TONES: dict[str, Tone] = {
    "running": "good",
    "throttled": "warn",
    "paused": "warn",
    "pausing": "warn",
    "waiting": "warn",
    "draining": "warn",
    "cancelling": "warn",
    "stalled": "bad",
    "lost": "bad",
}


@dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        title: Title above it.
        right: Whether its texts are aligned to the right.
        most: Largest width in cells if other columns need space.
        rank: If there is no room, columns of the highest rank are hidden first; those of rank 0 stay.
        soft: Whether its texts may be cut.
    """

    title: str
    right: bool = False
    most: int = 40
    rank: int = 0
    soft: bool = False


@dataclass(frozen=True)
class Cell:
    """A text and its style."""

    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        key: Identity of the row, e.g. the name of a queue or the id of a run.
        cells: One for each column.
    """

    key: str
    cells: tuple[Cell, ...]

    def has(self, text: str) -> bool:
        """Return whether a filter text, in lower case, matches."""
        return any(text in cell.text.lower() for cell in self.cells)


@dataclass(frozen=True)
class Sheet:
    """A table.

    Attributes:
        name: Name of the table.
        title: Title above it.
        columns: The columns; the last one takes the rest of the line.
        rows: All rows.
        empty: The text shown if there is no row.
    """

    name: Name
    title: str
    columns: tuple[Column, ...]
    rows: list[Row] = field(default_factory=list)
    empty: str = ""


def header(frame: Frame, problem: str | None = None) -> list[list[Cell]]:
    """Return the lines above the tables.

    Args:
        frame: The last frame that was read.
        problem: The reason why there is no newer frame; None if there is no problem.
    """
    waiting, deferred = sum(one.waiting for one in frame.queues), sum(one.deferred for one in frame.queues)
    slots = sum(one.slots for one in frame.workers if one.state != "lost")
    lost = sum(one.state == "lost" for one in frame.workers)
    server = f"{frame.server or 'Redis'} at {frame.url}"
    at = f"{frame.at.astimezone():%H:%M:%S}"
    first = [Cell(f"{at}  ", "dim"), Cell(plain(problem), "bad")] if problem else [Cell(f"{at}  {plain(server)}")]
    second = [
        Cell(f"{number(frame.running)} of {number(slots)} slots in use", "good" if frame.running else ""),
        Cell(f" · {number(waiting)} waiting · {number(deferred)} deferred · {number(frame.workers_known)} workers"),
        *([Cell(f" ({lost} lost)", "bad")] if lost else []),
        Cell(" · "),
        Cell(f"{number(frame.failed)} dead letters", "bad" if frame.failed else ""),
    ]
    if frame.done_rate is None or frame.failed_rate is None:
        third = [Cell("jobs/s: from the second look on", "dim")]
    else:
        third = [
            Cell(f"{per_second(frame.done_rate)} done/s", "good" if frame.done_rate else ""),
            Cell(" · "),
            Cell(f"{per_second(frame.failed_rate)} failed/s", "bad" if frame.failed_rate else ""),
            Cell(f"  {sparks(frame.history, _SPARKS)}", "dim"),
        ]
    return [first, second, third]


def sheets(frame: Frame, text: str = "") -> dict[Name, Sheet]:
    """Return all tables.

    Args:
        frame: The frame to show.
        text: A filter: rows without it are omitted.
    """
    made = (_queues(frame), _jobs(frame), _runs(frame), _holds(frame), _workers(frame), _failures(frame))
    wanted = text.lower().strip()
    if wanted:
        for sheet in made:
            sheet.rows[:] = [row for row in sheet.rows if row.has(wanted)]
    return {sheet.name: sheet for sheet in made}


def _queues(frame: Frame) -> Sheet:
    columns = (
        Column("queue", most=30, soft=True),
        Column("waiting", right=True),
        Column("deferred", right=True),
        Column("running", right=True),
        Column("oldest", right=True),
        Column(""),
    )
    return Sheet("queues", "queues", columns, [_queue(one) for one in frame.queues])


def _queue(one: QueueLine) -> Row:
    return _row(
        one.name,
        Cell(one.name),
        Cell(number(one.waiting), "warn" if one.waiting else ""),
        Cell(number(one.deferred)),
        Cell(number(one.running), "good" if one.running else ""),
        Cell(duration(one.oldest_seconds)),
        Cell("paused" if one.paused else "", "warn"),
    )


def _jobs(frame: Frame) -> Sheet:
    columns = (
        Column("job", most=30, soft=True),
        Column("now", right=True),
        Column("done/s", right=True),
        Column("failed/s", right=True),
        Column("done", right=True, rank=1),
        Column("failed", right=True, rank=1),
        Column("cancelled", right=True, rank=2),
        Column(""),
    )
    return Sheet("jobs", "rates", columns, [_job(one) for one in frame.jobs], "no run has ended yet")


def _job(one: JobLine) -> Row:
    return _row(
        one.name,
        Cell(one.name),
        Cell(number(one.running), "good" if one.running else ""),
        Cell(per_second(one.done_rate), "good" if one.done_rate else ""),
        Cell(per_second(one.failed_rate), "bad" if one.failed_rate else ""),
        Cell(number(one.done)),
        Cell(number(one.failed), "bad" if one.failed else ""),
        Cell(number(one.cancelled)),
        Cell("paused" if one.paused else "", "warn"),
    )


def _runs(frame: Frame) -> Sheet:
    columns = (
        Column("run", most=24, soft=True),
        Column("job", most=24, soft=True),
        Column("progress"),
        Column("left", right=True),
        Column("rows", right=True, rank=1),
        Column("rows/s", right=True),
        Column("age", right=True, rank=3),
        Column("attempt", right=True, rank=4),
        Column("worker", most=24, rank=2, soft=True),
        Column("state"),
        Column(""),
    )
    # The title has no number (the header does): a new title would redraw the whole table.
    return Sheet("runs", "runs", columns, [_run(one) for one in frame.runs], "nothing is running")


def _run(one: RunLine) -> Row:
    about = "~" if one.is_estimate else ""
    progress = "" if one.percent is None else f"{bar(one.percent, _BAR)} {about}{one.percent:3.0f} %"
    attempt = "" if one.attempt is None else str(one.attempt) + (f"+{one.takeovers}" if one.takeovers else "")
    tone = _TONES.get(one.state, "")
    return _row(
        one.id,
        Cell(one.id),
        Cell(one.job or "…"),
        Cell(progress, "good"),
        Cell(duration(one.left_seconds)),
        Cell(number(one.rows)),
        Cell(per_second(one.rate)),
        Cell(duration(one.seconds)),
        Cell(attempt, "warn" if (one.attempt or 1) > 1 else ""),
        Cell(one.worker, "dim"),
        Cell(one.state, tone),
        Cell(one.reason, tone),
    )


def _holds(frame: Frame) -> Sheet:
    columns = (
        Column("by"),
        Column("on", most=30, soft=True),
        Column("what"),
    )
    rows = [_hold(one) for one in frame.holds]
    return Sheet("holds", "held back", columns, rows, "no command, limit or rate holds anything back")


def _hold(one: Hold) -> Row:
    return _row(
        f"{one.kind} {one.on}",
        Cell(one.kind, "warn"),
        Cell(one.on),
        Cell(one.detail if one.waiting is None else f"{one.detail}, {number(one.waiting)} wait{_longest(one)}"),
    )


def _longest(one: Hold) -> str:
    return "" if one.seconds is None else f", the first for {duration(one.seconds)}"


def _workers(frame: Frame) -> Sheet:
    columns = (
        Column("worker", most=30, soft=True),
        Column("host", most=20, rank=2, soft=True),
        Column("pid", right=True, rank=3),
        Column("slots"),
        Column("seen", right=True),
        Column("up", right=True, rank=2),
        Column("ended", right=True, rank=1),
        Column("queue", most=20, rank=4, soft=True),
        Column("state"),
    )
    title = f"workers · {number(frame.workers_known)}"
    return Sheet(
        "workers", title, columns, [_worker(one) for one in frame.workers], "none: start one with `worker run`"
    )


def _worker(one: WorkerLine) -> Row:
    full = 100.0 * one.used / one.slots if one.slots else 0.0
    return _row(
        one.name,
        Cell(one.name),
        Cell(one.host),
        Cell(str(one.pid or "")),
        Cell(f"{bar(full, 5)} {one.used} of {one.slots}", "good" if one.used else ""),
        Cell(f"{duration(one.seen_seconds)} ago", "bad" if one.state == "lost" else ""),
        Cell(duration(one.up_seconds)),
        Cell(number(one.done)),
        Cell(one.queue),
        Cell(one.state, _TONES.get(one.state, "")),
    )


def _failures(frame: Frame) -> Sheet:
    columns = (
        Column("failed at"),
        Column("run", most=24, soft=True),
        Column("job", most=24, soft=True),
        Column("attempts", right=True, rank=1),
        Column("error"),
    )
    rows = [_failure(one) for one in frame.failures]
    more = f", the newest {len(rows)}" if frame.failed > len(rows) else ""
    return Sheet("failures", f"failures · {number(frame.failed)} dead letters{more}", columns, rows, "none")


def _failure(one: DeadLetter) -> Row:
    return _row(
        one.id,
        Cell(f"{one.at.astimezone():%m-%d %H:%M:%S}"),
        Cell(one.id),
        Cell(one.job or "?"),
        Cell(str(one.attempts)),
        Cell(one.error, "bad"),
    )


def _row(key: str, *cells: Cell) -> Row:
    return Row(key, tuple(_clean(cells)))


def _clean(cells: Iterable[Cell]) -> Iterable[Cell]:
    for cell in cells:
        yield cell if cell.text.isprintable() else Cell(plain(cell.text), cell.tone)
