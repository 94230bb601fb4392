"""`worker report`: what a run has done, how fast, and what its time went to, from the figures of the ledger."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import text

from worker.db.engine import Database
from worker.ledger import Ledger, RunRecord, Sample, StepRecord

#: The time between two attempts: the run waited in the queue, or for the lease of a worker that had died.
BETWEEN = "between attempts"
#: The time that no sample covers: the beginning, and what follows the last sample.
UNSAMPLED = "not sampled"
#: The time of a run before, between and behind its steps, in which no step is open.
OUTSIDE = "outside of steps"
_WITHOUT_BATCHES = {"step": "work", "sleep": "sleep"}

_HANDS = text("""
SELECT run.id, run.state, run.owner,
       coalesce((SELECT pg_catalog.sum(rows) FROM worker.step_range WHERE step_range.owner = run.id), 0)::bigint AS rows
  FROM worker.run WHERE parent = :id ORDER BY created_at, id
""")
_QUARANTINED = text(
    "SELECT pg_catalog.count(*) AS rows, pg_catalog.clock_timestamp() AS now FROM worker.quarantine WHERE run_id = :id"
)
# The batches of a walk in ranges touch its ranges, not its step.
_TIMES = text("""
SELECT name, started_at,
       CASE WHEN done THEN updated_at
            ELSE greatest(updated_at, (SELECT pg_catalog.max(step_range.updated_at) FROM worker.step_range
                                        WHERE step_range.run_id = step.run_id AND step_range.step = step.name))
       END AS ended_at
  FROM worker.step WHERE run_id = :id
""")


@dataclass(frozen=True)
class RatePoint:
    """The rate of a step in one span of time.

    Attributes:
        seconds: The end of the span, in seconds since the step's first sample or its beginning.
        rows: The rows that were done then.
        rows_per_second: The rate in the span.
    """

    seconds: float
    rows: int
    rows_per_second: float


@dataclass(frozen=True)
class StepReport:
    """The work of one step.

    Attributes:
        name: The step.
        kind: Its kind.
        rows: Its rows.
        batches: Its batches.
        seconds: The time from its beginning to its last batch.
        is_done: Whether it has ended.
        rates: Its rate over time.
        time: Its seconds by reason: "work", "lock", the kinds of throttles, "other hands", "sleep", "between attempts",
            "not sampled". They add up to `seconds`. Of a walk with several hands, they are those of the run's own.
    """

    name: str
    kind: str
    rows: int
    batches: int
    seconds: float
    is_done: bool
    rates: list[RatePoint] = field(default_factory=list)
    time: dict[str, float] = field(default_factory=dict)

    @property
    def rows_per_second(self) -> float:
        """The rate of the whole step, with its waits."""
        return self.rows / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True)
class RunReport:
    """The work of a run.

    Attributes:
        run: The run.
        seconds: The time from its beginning to its end, or until now.
        steps: Its steps.
        quarantined: The rows in quarantine.
        hands: Runs that have helped: id, state, worker and rows of the ranges that they own.
        time: Its seconds by reason, which add up to `seconds`: those of its steps, and "outside of steps".
    """

    run: RunRecord
    seconds: float
    steps: list[StepReport]
    quarantined: int
    hands: list[dict[str, Any]]
    time: dict[str, float] = field(default_factory=dict)


async def make_report(database: Database, run_id: str) -> RunReport | None:
    """Return the report of a run; None if the ledger has no such run."""
    ledger = Ledger(database)
    found = await ledger.list_runs(run_id=run_id, limit=1)
    if not found:
        return None
    run = found[0]
    samples: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in await ledger.list_samples(run_id):
        samples[sample.step].append(sample)
    async with database.connection() as connection:
        hands = [dict(row._mapping) for row in await connection.execute(_HANDS, {"id": run_id})]
        times = {row.name: row for row in await connection.execute(_TIMES, {"id": run_id})}
        quarantined, now = (await connection.execute(_QUARANTINED, {"id": run_id})).one()
    ended = run.finished_at or now
    steps = []
    last = run.created_at
    for step in run.steps:
        if step.name not in times:
            continue
        began, until = times[step.name].started_at, times[step.name].ended_at
        if samples[step.name] and not step.done:
            until = max(until, samples[step.name][-1].at)  # a wait behind the last batch
        elif step.kind == "sleep" and not step.done and run.finished_at is None:
            until = now
        steps.append(_report_step(step, samples[step.name], began, until))
        last = max(last, until)
    seconds = max(0.0, (ended - run.created_at).total_seconds())
    behind = max(0.0, (ended - last).total_seconds()) if any(not step.is_done for step in steps) else 0.0
    tail = {"paused": "paused", "running": UNSAMPLED}.get(run.state, BETWEEN)
    return RunReport(run, seconds, steps, quarantined, hands, _add_up(steps, seconds, {tail: behind}))


def _report_step(step: StepRecord, samples: list[Sample], began: datetime, ended: datetime) -> StepReport:
    total = max(0.0, (ended - began).total_seconds())
    if step.kind in _WITHOUT_BATCHES:
        time = {_WITHOUT_BATCHES[step.kind]: round(total, 3)}
        return StepReport(step.name, step.kind, step.rows, step.batches, total, step.done, time=time)
    rates: list[RatePoint] = []
    spent: defaultdict[str, float] = defaultdict(float)
    at, rows = began, 0
    for number, sample in enumerate(samples):
        span, counted = (min(sample.at, ended) - at).total_seconds(), sum(sample.seconds.values())
        if span <= 0:
            continue
        # The clock of the worker is another one than that of the server: what was counted is never above the span.
        share = min(1.0, span / counted) if counted > 0 else 0.0
        for reason, seconds in sample.seconds.items():
            spent[reason] += seconds * share
        # A process that ended has stored nothing since its last sample: the rest is the time until its successor began.
        rest = span - counted * share
        if rest > 0:
            spent[BETWEEN if number and _is_new_attempt(samples[number - 1], sample, rest) else UNSAMPLED] += rest
        done = sample.rows if sample.rows < rows else sample.rows - rows  # a stream may begin again
        rates.append(RatePoint((min(sample.at, ended) - began).total_seconds(), sample.rows, done / span))
        at, rows = min(sample.at, ended), sample.rows
    rest = (ended - at).total_seconds()
    if rest > 0:
        spent[UNSAMPLED] += rest
        if step.rows > rows:
            rates.append(RatePoint(total, step.rows, (step.rows - rows) / rest))
    time = {reason: round(seconds, 3) for reason, seconds in spent.items()}
    return StepReport(step.name, step.kind, step.rows, step.batches, total, step.done, rates, time)


def _is_new_attempt(before: Sample, after: Sample, rest_seconds: float) -> bool:
    return before.attempt != after.attempt or rest_seconds > 1.0


def _add_up(steps: list[StepReport], total: float, behind: dict[str, float]) -> dict[str, float]:
    """Return the seconds of a run by reason, with those behind an open step. They add up to its time."""
    spent: defaultdict[str, float] = defaultdict(float, behind)
    for step in steps:
        for reason, seconds in step.time.items():
            spent[reason] += seconds
    rest = total - sum(spent.values())
    if rest > 0:
        spent[OUTSIDE] += rest
    elif spent:  # a step was run while another one waited for its next attempt
        for reason in (BETWEEN, UNSAMPLED):
            taken = min(spent.get(reason, 0.0), -rest)
            spent[reason] -= taken
            rest += taken
    return {reason: round(seconds, 3) for reason, seconds in spent.items() if round(seconds, 3) > 0}
