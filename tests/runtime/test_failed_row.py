"""A run whose batch always fails ends with the key of the row that fails, wherever that row is."""

from __future__ import annotations

from itertools import product

import pytest
from sqlalchemy import select, text, update

from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.workers import with_worker, working
from worker import Client, JobContext, JobFailed, Settings, job
from worker.db.engine import Database

ROWS, SIZE = 60, 16
BAD = [1, 16, 23, 60]


@job
async def walk_to_bad_row(ctx: JobContext, bad: int, loop: str) -> None:
    """Raise for one row."""
    ids = select(Author.id)
    walk = ctx.chunks(ids, size=SIZE) if loop == "chunks" else ctx.stream(ids.order_by(Author.id), size=SIZE)
    async for batch in walk:
        if bad in batch:
            raise ValueError("a name that no one can read")


@job
async def sweep_to_bad_row(ctx: JobContext, bad: int, loop: str) -> None:
    """Divide by zero in one row."""
    await ctx.sweep(update(Author).values(seen=1 / (Author.id - bad)), size=SIZE)


@pytest.mark.parametrize("max_attempts", [2, pytest.param(6, marks=pytest.mark.long)])
async def test_the_row_that_fails_is_named(
    fast: Settings, client: Client, database: Database, max_attempts: int
) -> None:
    await fill_authors(database, ROWS)
    cells = {f"{loop}-{bad}": (loop, bad) for loop, bad in product(["chunks", "stream", "sweep"], BAD)}
    async with working(with_worker(fast, max_attempts=max_attempts), walk_to_bad_row, sweep_to_bad_row):
        runs = [
            await client.enqueue((sweep_to_bad_row if loop == "sweep" else walk_to_bad_row).options(id=name), bad, loop)
            for name, (loop, bad) in cells.items()
        ]
        for run, (loop, bad) in zip(runs, cells.values(), strict=True):
            with pytest.raises(JobFailed) as failed:
                await run.result(timeout=120)
            async with database.session() as session:
                steps = text("SELECT sum(rows) FROM worker.step WHERE run_id = :id")
                done = await session.scalar(steps, {"id": run.id})
            if loop != "sweep":  # whose rows the server alone sees
                assert f", key {bad}]" in str(failed.value)
            else:
                assert f"behind key {bad - 1}, up to key {bad}]" in str(failed.value) or bad == 1
            assert done == bad - 1, "all rows before it are done"
