"""The page of a run: its story, plots, steps, hands, arguments, result or error, rows in quarantine, and orders."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from pydantic import Field

from worker.web.attempts import list_attempts, list_row_runs
from worker.web.fields import Query
from worker.web.page.links import read_names
from worker.web.page.story import KINDS, Story, tell
from worker.web.page.visit import Visit
from worker.web.problems import Problem
from worker.web.views import BatchView, EventView, HandsView, RunDetail, StepView

_ROWS_SHOWN = 20
_LINES_SHOWN = 200
_JOBS_NAMED = 3
_MOST_POINTS = 300
_UNKNOWN_SECONDS = 1.5
_LEAST_PACE = 1_000.0
ENDED = ("succeeded", "incomplete", "dead", "cancelled")


class RunPageQuery(Query):
    """The part of the quarantined rows that is shown."""

    rows: str | None = Field(default=None, max_length=200, description="Cursor of the quarantined rows.")


@dataclass(frozen=True)
class Series:
    """A figure of the batches over time.

    Attributes:
        name: what it is.
        unit: behind the figure.
        points: place on the line of time, 0 to 100, and value; None for a gap.
        newest: the last value.
        top: the largest value.
    """

    name: str
    unit: str
    points: list[tuple[float, float] | None]

    @property
    def newest(self) -> float | None:
        """The last value."""
        return next((point[1] for point in reversed(self.points) if point is not None), None)

    @property
    def top(self) -> float:
        """The largest value."""
        return max((point[1] for point in self.points if point is not None), default=0.0)


async def load_run(visit: Visit) -> dict[str, Any]:
    """Return the values of `run.html`."""
    run: RunDetail = await visit.read("show_run", visit.path)
    events = (await visit.read("list_story", visit.path)).items
    steps: list[StepView] = []
    batches: list[BatchView] = []
    hands = HandsView(hands=[], ranges=[])
    if run.in_ledger:
        try:
            steps = (await visit.read("list_steps", visit.path)).items
            batches = (await visit.read("list_batches", visit.path)).items
            if any(step.ranges for step in steps):
                hands = await visit.read("list_hands", visit.path)
        except Problem as problem:  # the mirror says that the ledger has it; it was deleted since
            if problem.status != 404:
                raise
    quarantine = None
    if run.quarantined:
        quarantine = await visit.read("list_quarantine", run=run.id, limit=_ROWS_SHOWN, cursor=visit.query.rows)
    story = tell(run, events, batches)
    attempts = list_attempts(one.fields for one in events)
    has_ended = run.state in ENDED
    again = max((at for at, one in enumerate(attempts) if one.is_again), default=None)
    return {
        "run": run,
        "attempts": attempts,
        "again": None if again is None else (attempts[again], attempts[again - 1].outcome),
        "row_runs": list_row_runs(events),
        "enqueued_by": _find_author(events),
        "named_jobs": await _list_named_jobs(visit, run),
        "has_ended": has_ended,
        "story": story,
        "kinds": KINDS,
        "series": [] if story is None else _list_series(story, batches),
        "steps": steps,
        "hands": hands,
        "quarantine": quarantine,
        "log": (await visit.read("list_log", visit.path)).items[-_LINES_SHOWN:],
        "most_pace": _round_up(max(_LEAST_PACE, 4 * (run.rate or 0), run.pace or 0)),
    }


def _find_author(events: Sequence[EventView]) -> str | None:
    """Return the name of the operator who has enqueued a run; None if a service, a job or a cron line has."""
    orders = (one.fields for one in events if one.event == "ordered")
    return next((fields.get("by") for fields in orders if fields.get("order") == "enqueue"), None)


async def _list_named_jobs(visit: Visit, run: RunDetail) -> list[str]:
    """Return the other jobs that the error of a run names: one of them may cure it."""
    if not run.error:
        return []
    jobs = (await read_names(visit.backend)).jobs
    # A name of one plain word could be any word of the sentence.
    words = dict.fromkeys(re.findall(r"[^\W\d][\w.-]*\w", run.error))
    return [word for word in words if word in jobs and word != run.job and not word.isalpha()][:_JOBS_NAMED]


def _round_up(value: float) -> int:
    """Return the power of ten at or above a value: the end of the slider does not move with each batch."""
    return int(10 ** math.ceil(math.log10(value)))


def _list_series(story: Story, batches: Sequence[BatchView]) -> list[Series]:
    """Return rate, batch size and batch time over time. A new process begins behind a gap."""
    rate: list[tuple[float, float] | None] = []
    size: list[tuple[float, float] | None] = []
    time: list[tuple[float, float] | None] = []
    before: dict[str, BatchView] = {}
    for sample in batches:
        last = before.get(sample.step)
        before[sample.step] = sample
        if last is None or _is_of_new_process(last, sample):
            for series in (rate, size, time):
                series.append(None)
            continue
        _add_sample(story.place(sample.at), sample, last, (rate, size, time))
    found = (("Rate, not averaged", "rows/s", rate), ("Batch size", "rows", size), ("Batch time", "ms", time))
    return [
        Series(name, unit, _thin_out(points))
        for name, unit, points in found
        if sum(point is not None for point in points) > 1
    ]


def _thin_out(points: list[tuple[float, float] | None]) -> list[tuple[float, float] | None]:
    """Return some hundred points, and every gap."""
    step = len(points) // _MOST_POINTS + 1
    return [point for at, point in enumerate(points) if point is None or at % step == 0 or points[at - 1] is None]


def _add_sample(
    place: float,
    sample: BatchView,
    last: BatchView,
    series: tuple[list[tuple[float, float] | None], ...],
) -> None:
    rows, batches = sample.rows - last.rows, sample.batches - last.batches
    span = _seconds(last.at, sample.at)
    rate, size, time = series
    if span > 0:
        rate.append((place, max(0.0, rows / span)))
    if batches > 0:
        size.append((place, max(0.0, rows / batches)))
        work = sample.seconds.get("work", 0.0) + sample.seconds.get("lock", 0.0)
        if work > 0:
            time.append((place, 1000 * work / batches))


def _is_of_new_process(last: BatchView, sample: BatchView) -> bool:
    """Return whether the run was taken over or paused between two samples: no process counts the time between."""
    unknown = _seconds(last.at, sample.at) - sum(sample.seconds.values())
    return last.attempt != sample.attempt or unknown > _UNKNOWN_SECONDS


def _seconds(begin: datetime, end: datetime) -> float:
    return (end - begin).total_seconds()
