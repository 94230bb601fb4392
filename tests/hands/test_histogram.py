"""A walk of all rows of a table is divided by the planner's histogram, while that is current."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Table, delete, func, insert, select, text, update

from tests.hands.test_range_ends import ROWS, fill, report_changes
from tests.support.contexts import MakeContext
from tests.support.waiting import until
from worker.batch import range_ends
from worker.db.engine import Database

#: Columns of a key, and whether the histogram has its ends.
KINDS = {"clumps": True, "negative and descending": True, "uuid": True, "text": False, "two columns": False}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Have an element for each division that reads keys of the table."""
    found: list[int] = []
    divide = range_ends.range_ends

    def counted(*args: Any, **options: Any) -> Any:
        found.append(1)
        return divide(*args, **options)

    monkeypatch.setattr(range_ends, "range_ends", counted)
    return found


async def analyze(database: Database) -> None:
    """Write the histogram, after the server knows of the changes before it."""
    await until(lambda: is_changed(database))
    async with database.engine.begin() as connection:
        await connection.execute(text("ANALYZE uneven"))


async def is_changed(database: Database) -> bool:
    """Return whether the server knows of changes since ANALYZE. A session reports its own once a second at most."""
    async with database.engine.begin() as connection:
        changed = "SELECT pg_stat_get_mod_since_analyze('uneven'::regclass)"
        return int(await connection.scalar(text(changed)) or 0) > 0


async def rows_of_ranges(database: Database) -> list[int]:
    async with database.session() as session:
        return list(await session.scalars(text("SELECT rows FROM worker.step_range ORDER BY number")))


async def walk(
    context: MakeContext, table: Table, *, is_descending: bool = False, kind: str = "chunks", hands: int = 2
) -> set[int]:
    """Walk a table in ranges. Return the rows that were seen."""
    ctx, seen = context(), set[int]()
    by = [column.desc() if is_descending else column for column in table.primary_key.columns]
    if kind == "stream":
        statement = select(table.c.n).add_columns(*table.primary_key.columns).order_by(*by)
        async for rows in ctx.stream(statement, size=500, parallel=2):
            seen |= {row.n for row in rows}
        return seen
    async for batch in ctx.chunks(select(table.c.n), size=200, by=by, lock=False, parallel=hands):
        assert seen.isdisjoint(batch)
        seen.update(batch)
    return seen


@pytest.mark.parametrize("walked_by", ["chunks", "stream"])
@pytest.mark.parametrize("kind", KINDS)
async def test_ranges_of_a_current_histogram_are_even_and_hold_each_row(
    context: MakeContext, database: Database, reads: list[int], kind: str, walked_by: str
) -> None:
    table = await fill(database, kind)
    await analyze(database)
    assert await walk(context, table, is_descending="descending" in kind, kind=walked_by) == set(range(1, ROWS + 1))
    rows = await rows_of_ranges(database)
    assert len(rows) == 32
    assert max(rows) < 2 * min(rows)
    assert bool(reads) is not KINDS[kind]


@pytest.mark.parametrize(("hands", "ranges"), [(2, 32), (3, 33), (4, 33), (5, 80)])
async def test_a_histogram_gives_half_of_the_ranges_at_least(
    context: MakeContext, database: Database, reads: list[int], hands: int, ranges: int
) -> None:
    table = await fill(database, "clumps")
    await analyze(database)
    assert len(await walk(context, table, hands=hands)) == ROWS
    assert len(await rows_of_ranges(database)) == ranges
    assert bool(reads) is (hands == 5)  # 40 ranges of three bins would need 120 bins


@pytest.mark.parametrize("change", ["update", "delete"])
async def test_a_sweep_is_divided_by_the_histogram(
    context: MakeContext, database: Database, reads: list[int], change: str
) -> None:
    table = await fill(database, "clumps")
    await analyze(database)
    statement = update(table).values(n=table.c.n + 1) if change == "update" else delete(table).where(table.c.n > 0)
    assert await context().sweep(statement, size=500, parallel=2) == ROWS
    assert len(await rows_of_ranges(database)) == 32
    assert not reads


async def test_a_walk_that_continues_divides_the_rest(
    context: MakeContext, database: Database, reads: list[int]
) -> None:
    table = await fill(database, "clumps")
    await analyze(database)
    first = context()
    async for batch in first.chunks(select(table.c.n), size=500, lock=False, name="walk"):
        if batch.number == 10:
            await first._attempt.fail()
            break
    again = context(run_id=first.run_id)
    async for _ in again.chunks(select(table.c.n), size=800, lock=False, name="walk", parallel=2):
        pass
    rows = await rows_of_ranges(database)
    assert again.rows_done == ROWS
    assert sum(rows) == ROWS - 9 * 500
    assert len(rows) == 19  # 78 bins of the histogram with 200 rows each, at least 800 rows for each range
    assert max(rows) < 2 * min(rows)
    assert not reads


@pytest.mark.parametrize("change", ["more rows", "changed rows", "no statistics", "a condition"])
async def test_another_histogram_than_that_of_the_walk_is_not_used(
    context: MakeContext, database: Database, reads: list[int], change: str
) -> None:
    table = await fill(database, "clumps")
    if change != "no statistics":
        await analyze(database)
    async with database.engine.begin() as connection:
        await report_changes(connection)
        if change == "more rows":
            new = insert(table).from_select(["id", "n"], select(-func.row_number().over() - 1, table.c.n))
            await connection.execute(new)
        if change == "changed rows":
            await connection.execute(delete(table).where(table.c.n < ROWS // 4))
    if "rows" in change:
        await until(lambda: is_changed(database))
    statement = select(table.c.n)
    ctx = context()
    async for _ in ctx.chunks(statement.where(table.c.n > 0) if change == "a condition" else statement, parallel=2):
        pass
    assert reads
