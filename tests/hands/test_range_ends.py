"""Ranges of a walk have about the same number of rows, whatever its key."""

from __future__ import annotations

import pytest
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Integer,
    MetaData,
    Numeric,
    Table,
    Text,
    Uuid,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import CITEXT
from sqlalchemy.ext.asyncio import AsyncConnection

from tests.support.contexts import MakeContext
from tests.support.sampling import sampled
from worker.batch import range_ends
from worker.db.engine import Database

ROWS = 20_000

#: Columns of the key, and the expressions of their values for the row n.
KEYS = {
    "clumps": ([("id", BigInteger)], ["CASE n % 3 WHEN 0 THEN n WHEN 1 THEN 7e8 + n ELSE 1.6e9 - n END::bigint"]),
    "two columns": ([("region", Integer), ("code", Text)], ["CASE WHEN n < 18000 THEN 1 ELSE n END", "'c' || n"]),
    "text": ([("name", Text)], ["md5(n::text)"]),
    "citext": ([("name", CITEXT)], ["(CASE n % 2 WHEN 0 THEN 'Name ' ELSE 'nAME ' END || n)::citext"]),
    "uuid": ([("id", Uuid)], ["md5(n::text)::uuid"]),
    "timestamp": (
        [("at", DateTime(timezone=True))],
        ["timestamptz '2024-01-01 00:00Z' + n * CASE WHEN n < 16000 THEN interval '1 ms' ELSE interval '1 hour' END"],
    ),
    "numeric": ([("amount", Numeric)], ["round(power(1.0005, n), 8) + n / 1e6"]),
    "negative and descending": ([("id", Integer)], ["-n * CASE WHEN n < 16000 THEN 1 ELSE 1000 END"]),
    "date": ([("day", Date), ("id", Integer)], ["date '2024-01-01' + CASE WHEN n < 12000 THEN 0 ELSE n END", "n"]),
    "sorted as bytes": ([("name", Text(collation="C"))], ["chr(65 + 32 * (n % 2) + n % 26) || n"]),
}


async def fill(database: Database, kind: str, *, rows: int = ROWS) -> Table:
    """Make a table with a key."""
    columns, values = KEYS[kind]
    parts: list[Column[object]] = [Column(name, type_, primary_key=True) for name, type_ in columns]  # type: ignore[arg-type]
    table = Table("uneven", MetaData(), *parts, Column("n", Integer), Column("flag", Boolean))
    setting = "ALTER TABLE uneven SET (autovacuum_enabled = false)"  # the tests decide when there is a histogram
    async with database.engine.begin() as connection:
        await connection.execute(text("CREATE EXTENSION IF NOT EXISTS citext"))
        await connection.run_sync(table.metadata.create_all)
        await connection.execute(text(setting))
        await report_changes(connection)
        statement = f"INSERT INTO uneven SELECT {', '.join(values)}, n, false FROM generate_series(1, {rows}) AS n"
        await connection.execute(text(statement))
    return table


async def report_changes(connection: AsyncConnection) -> None:
    """Let the session report its changes to the statistics when its transaction ends, and not a second later."""
    if int(await connection.scalar(text("SHOW server_version_num")) or 0) >= 150000:
        await connection.execute(text("SELECT pg_stat_force_next_flush()"))


async def walk(context: MakeContext, database: Database, table: Table, *, is_descending: bool) -> list[int]:
    """Walk a table in ranges. Return the rows of each range."""
    ctx = context()
    seen: set[int] = set()
    by = [column.desc() if is_descending else column for column in table.primary_key.columns]
    async for batch in ctx.chunks(select(table.c.n), size=1_000, by=by, lock=False, parallel=2):
        assert seen.isdisjoint(batch)
        seen.update(batch)
    assert len(seen) == ctx.rows_done == ROWS
    async with database.session() as session:
        found = await session.execute(text("SELECT rows FROM worker.step_range ORDER BY number"))
        return [row.rows for row in found]


@pytest.mark.parametrize(
    ("kind", "is_sampled"),
    sampled([*((kind, False) for kind in KEYS), ("clumps", True), ("two columns", True), ("numeric", True)], 2),
)
async def test_ranges_have_the_same_number_of_rows(
    context: MakeContext, database: Database, monkeypatch: pytest.MonkeyPatch, kind: str, is_sampled: bool
) -> None:
    table = await fill(database, kind)
    if is_sampled:
        monkeypatch.setattr(range_ends, "_EXACT_PAGES", 0)
        monkeypatch.setattr(range_ends, "_KEYS_PER_RANGE", 400)  # of all pages of this small table
    rows = await walk(context, database, table, is_descending="descending" in kind)
    if is_sampled:
        assert len(rows) == 32
        assert max(rows) < 2 * min(rows)
    else:
        assert rows == [1_000] * 20  # a range has at least one batch


async def test_a_selective_statement_is_divided_by_its_own_rows(
    context: MakeContext, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = await fill(database, "clumps")
    monkeypatch.setattr(range_ends, "_EXACT_PAGES", 0)
    monkeypatch.setattr(range_ends, "_PAGES_PER_RANGE", 2)
    ctx = context()
    async for _ in ctx.chunks(select(table.c.n).where(table.c.n <= 320), size=10, lock=False, parallel=4):
        pass
    async with database.session() as session:
        found = await session.execute(text("SELECT rows FROM worker.step_range"))
        assert [row.rows for row in found] == [10] * 32


async def test_the_rows_of_a_join_are_divided_not_those_of_the_table(context: MakeContext, database: Database) -> None:
    table = await fill(database, "clumps", rows=4_000)
    other = Table("other", MetaData(), Column("n", Integer), Column("copy", Integer))
    async with database.engine.begin() as connection:
        await connection.run_sync(other.metadata.create_all)
        # Two rows for each of the first 800 keys, none for the others.
        await connection.execute(text("INSERT INTO other SELECT n % 800 + 1, n FROM generate_series(0, 1599) AS n"))
    joined = select(table.c.n, other.c.copy).join(other, other.c.n == table.c.n)
    ctx = context()
    seen = [
        tuple(row)
        async for batch in ctx.chunks(joined, by=table.c.id, size=10, lock=False, parallel=2)
        for row in batch
    ]
    assert sorted(seen) == sorted((n % 800 + 1, n) for n in range(1_600))
    async with database.session() as session:
        found = await session.execute(text("SELECT rows FROM worker.step_range"))
        assert [row.rows for row in found] == [50] * 32


async def test_a_range_has_at_least_one_batch(context: MakeContext, database: Database) -> None:
    table = await fill(database, "clumps", rows=50)
    for size, ranges in [(30, 0), (25, 2), (10, 5)]:
        ctx = context()
        assert [len(batch) async for batch in ctx.chunks(select(table.c.n), size=size, parallel=4)]
        async with database.session() as session:
            values = {"id": ctx.run_id}
            counted = text("SELECT count(*) FROM worker.step_range WHERE run_id = :id")
            assert await session.scalar(counted, values) == ranges


@pytest.mark.long
async def test_a_large_table_whose_statistics_are_stale_is_divided_by_a_sample(
    context: MakeContext, database: Database
) -> None:
    table = await fill(database, "clumps", rows=100)
    async with database.engine.begin() as connection:
        await connection.execute(text("ALTER TABLE uneven ADD COLUMN filler text DEFAULT repeat('x', 250)"))
        await connection.execute(text("ANALYZE uneven"))  # of a table with 100 rows, all of them above 0
        more = "INSERT INTO uneven (id, n) SELECT -CASE WHEN n % 2 = 0 THEN n ELSE 1e9 + n END, n"
        await connection.execute(text(f"{more} FROM generate_series(1, 650000) AS n"))
    ctx = context()
    async for _ in ctx.chunks(select(table.c.n), size=1_000, lock=False, parallel=4):
        await ctx._attempt.fail()
        break
    counted = (
        "SELECT (SELECT count(*) FROM uneven WHERE id > coalesce((lower ->> 0)::bigint, -2e9) "
        "AND id <= (upper ->> 0)::bigint) FROM worker.step_range ORDER BY number"
    )
    async with database.session() as session:
        assert await session.scalar(text("SELECT pg_relation_size('uneven') / 8192")) > range_ends._EXACT_PAGES
        rows = list(await session.scalars(text(counted)))
        await session.execute(text("DROP TABLE uneven"))
    assert sum(rows) == 650_100
    assert len(rows) == 64
    assert max(rows) < 2 * min(rows)
