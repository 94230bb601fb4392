"""Reads a run from the ledger's tables with plain SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from sqlalchemy import text

from worker.types import Database

_QUERY = text(
    """
    SELECT run.job, run.takeovers, coalesce(run.finished_at, run.updated_at) - run.created_at AS took,
        coalesce(sum(step.rows), 0)::bigint AS rows, coalesce(sum(step.batches), 0)::bigint AS batches
    FROM worker.run LEFT JOIN worker.step ON step.run_id = run.id
    WHERE run.id = ANY(:ids)
    GROUP BY run.id ORDER BY run.created_at
    """
)

_HANDS = text("SELECT sum(rows)::bigint FROM worker.step_range WHERE run_id = :id GROUP BY owner ORDER BY 1 DESC")


@dataclass(frozen=True)
class Recorded:
    """One run in the ledger, with the sums of its steps."""

    job: str
    takeovers: int
    took: timedelta
    rows: int
    batches: int


async def recorded(database: Database, run_ids: Sequence[str]) -> list[Recorded]:
    """Return the committed state of these runs."""
    async with database.session() as session:
        return [Recorded(*row) for row in await session.execute(_QUERY, {"ids": list(run_ids)})]


async def rows_of_hands(database: Database, run_id: str) -> list[int]:
    """Return the rows of each hand that has walked ranges of a run."""
    async with database.session() as session:
        return list(await session.scalars(_HANDS, {"id": run_id}))
