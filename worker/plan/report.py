"""`worker report`: what a run has done, how fast, and what its time went to, from the figures of the ledger."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import text

from worker.db.engine import Database
from worker.ledger import Ledger, RunRecord, Sample, StepRecord

#: The time between two attempts: the run waited in the queue, or for the lease of a worker that had died.
BETWEEN = "between attempts"
#: The time that no sample covers: the beginning, and what follows the last sample.
UNSAMPLED = "not sampled"

_HANDS = text("""
SELECT run.id, run.state, run.owner,
       coalesce((SELECT pg_catalog.sum(rows) FROM worker.step_range WHERE step_range.owner = run.id), 0)::bigint AS rows
  FROM worker.run WHERE parent = :id ORDER BY created_at, id
""")
_QUARANTINED = text("SELECT count(*) FROM worker.quarantine WHERE run_id = :id")


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
        time: Its seconds by reason: "work", "lock", the kinds of throttles, "between attempts", "not sampled".
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
    """

    run: RunRecord
    seconds: float
    steps: list[StepReport]
    quarantined: int
    hands: list[dict[str, Any]]


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
        times = {
            row.name: row
            for row in await connection.execute(
                text("SELECT name, started_at, updated_at FROM worker.step WHERE run_id = :id"), {"id": run_id}
            )
        }
        quarantined = int(await connection.scalar(_QUARANTINED, {"id": run_id}) or 0)
    steps = [
        _report_step(step, samples[step.name], times[step.name].started_at, times[step.name].updated_at)
        for step in run.steps
        if step.name in times
    ]
    ended = run.finished_at or datetime.now(UTC)
    return RunReport(run, (ended - run.created_at).total_seconds(), steps, quarantined, hands)


def _report_step(step: StepRecord, samples: list[Sample], began: datetime, ended: datetime) -> StepReport:
    rates: list[RatePoint] = []
    spent: defaultdict[str, float] = defaultdict(float)
    at, rows = began, 0
    for number, sample in enumerate(samples):
        span, counted = (sample.at - at).total_seconds(), sum(sample.seconds.values())
        for reason, seconds in sample.seconds.items():
            spent[reason] += seconds
        # A process that ended has stored nothing since its last sample: the rest is the time until its successor began.
        rest = span - counted
        if rest > 0:
            spent[BETWEEN if number and _is_new_attempt(samples[number - 1], sample, rest) else UNSAMPLED] += rest
        if span > 0:
            rates.append(RatePoint((sample.at - began).total_seconds(), sample.rows, (sample.rows - rows) / span))
            at, rows = sample.at, sample.rows
    rest = (ended - at).total_seconds()
    if rest > 0:
        spent[UNSAMPLED] += rest
        if step.rows > rows:
            rates.append(RatePoint((ended - began).total_seconds(), step.rows, (step.rows - rows) / rest))
    total = (ended - began).total_seconds()
    time = {reason: round(seconds, 3) for reason, seconds in spent.items()}
    return StepReport(step.name, step.kind, step.rows, step.batches, total, step.done, rates, time)


def _is_new_attempt(before: Sample, after: Sample, rest_seconds: float) -> bool:
    return before.attempt != after.attempt or rest_seconds > 1.0
