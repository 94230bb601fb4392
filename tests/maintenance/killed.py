"""`python -m tests.maintenance.killed KIND DIRECTORY`: one attempt of a ready-made job, killed from outside.

It prints a line for each committed batch, and "done" with the result.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

from sqlalchemy import func, select, true

from tests.maintenance.tables import Customer, OldVisit, Total, Visit
from worker import Job, load_settings
from worker.attempt.control import NoControl
from worker.maintenance import (
    archive,
    backfill_column,
    copy_table,
    dedupe,
    export_table,
    load_file,
    purge,
    recompute,
)
from worker.testing.runner import JobRunner
from worker.types import Database

SIZE = 10


def make_jobs(directory: Path) -> dict[str, Job[..., Any]]:
    """Return a job for each kind of effect."""
    totals = select(Visit.id.label("shop"), func.count().label("visits")).group_by(Visit.id).order_by(Visit.id)
    return {
        "archive": archive(Visit, OldVisit, where=true(), size=SIZE),
        "backfill sql": backfill_column(Visit, Visit.page, "x", where=true(), size=SIZE),
        "backfill function": backfill_column(Visit, Visit.page, lambda row: "x", where=true(), size=SIZE),
        "copy": copy_table(Visit, OldVisit, size=SIZE),
        "dedupe": dedupe(Visit, "shop", size=SIZE),
        "export": export_table(Visit, directory, format="jsonl", columns=["id"], size=SIZE),
        "load": load_file(Customer, directory / "a.csv", size=SIZE),
        "purge": purge(Customer, where=true(), size=SIZE),
        "purge with parents": purge(Customer, where=true(), children="with_parents", size=SIZE),
        "recompute": recompute(Visit, {"seconds": -1}, size=SIZE),
        "recompute totals": recompute(Total, totals, size=SIZE),
    }


class Prints(NoControl):
    """Prints a line for each committed batch."""

    def report(self, progress: Any, rows: int) -> None:
        print(rows, flush=True)


async def main(kind: str, directory: Path) -> None:
    """Run one attempt of the run "killed"."""
    settings = load_settings()
    database = Database(settings, "killed")
    try:
        job = make_jobs(directory)[kind]
        ctx = JobRunner(database, settings).context(job.name, "killed", control=Prints())
        result = await ctx._attempt.run(job, ctx, job.decode_arguments([], {}))
        await ctx._attempt.succeed()
        await ctx._attempt.close()
    finally:
        await database.close()
    print(f"done {result}")


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2])))
