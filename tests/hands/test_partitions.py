"""A partitioned table is walked by ranges that lie in one partition each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, Text, select, text, update

from tests.support.contexts import MakeContext
from worker import JobContext
from worker.batch import range_ends
from worker.db.engine import Database

ROWS = 640

#: How tables are partitioned: the columns of the key, the clause, and the partitions. `n` counts the rows.
TABLES = {
    "by list": (
        "id, region",
        "LIST (region)",
        [
            "north FOR VALUES IN ('n0', 'o''k%:x')",
            "south FOR VALUES IN ('n1')",
            "empty FOR VALUES IN ('none')",
            "others DEFAULT",
        ],
    ),
    "by range of the key": (
        "id",
        "RANGE (id)",
        [
            "early FOR VALUES FROM (0) TO (501)",
            "late FOR VALUES FROM (501) TO (552)",
            "later FOR VALUES FROM (552) TO (9999)",
        ],
    ),
    "by hash": ("id", "HASH (id)", [f"h{n} FOR VALUES WITH (modulus 3, remainder {n})" for n in range(3)]),
    "nested": (
        "region, id",
        "LIST (region)",
        [
            "north FOR VALUES IN ('n0') PARTITION BY RANGE (id)",
            "south FOR VALUES IN ('n1') PARTITION BY HASH (id)",
            "others DEFAULT PARTITION BY RANGE (region, id)",
        ],
    ),
}
BELOW = {
    "north": ["FOR VALUES FROM (0) TO (500)", "DEFAULT"],
    "south": ["FOR VALUES WITH (modulus 2, remainder 0)", "FOR VALUES WITH (modulus 2, remainder 1)"],
    "others": ["FOR VALUES FROM ('n2', 0) TO ('n3', 0)", "FOR VALUES FROM ('n3', 0) TO (MAXVALUE, MAXVALUE)"],
}
#: The partitions with ranges: those of a hash share theirs, and an empty one has none.
UNITS = {
    "by list": ["north", "south", "others"],
    "by range of the key": ["early", "late", "later"],
    "by hash": [None],
    "nested": ["south", "north0", "north1", "others0", "others1"],
}


@pytest.fixture(params=TABLES)
async def parted(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[tuple[str, Table]]:
    """Create a partitioned table with rows."""
    key, clause, partitions = TABLES[request.param]
    types = {"id": Integer, "region": Text, "seen": Integer}
    names = [*key.split(", "), *types]  # the primary key in its order
    columns: list[Column[Any]] = [Column(name, types[name], primary_key=name in key) for name in dict.fromkeys(names)]
    table = Table("parted", MetaData(), *columns)
    async with database.engine.begin() as connection:
        make = (
            f"CREATE TABLE parted (id int, region text NOT NULL, seen int, PRIMARY KEY ({key})) PARTITION BY {clause}"
        )
        await connection.execute(text(make))
        for partition in partitions:
            name, _, bound = partition.partition(" ")
            await connection.exec_driver_sql(f"CREATE TABLE {name} PARTITION OF parted {bound}")
            for number, below in enumerate(BELOW[name] if "PARTITION BY" in bound else []):
                await connection.exec_driver_sql(f"CREATE TABLE {name}{number} PARTITION OF {name} {below}")
        fill = f"INSERT INTO parted SELECT n, 'n' || n % 4, 0 FROM generate_series(1, {ROWS}) AS n"
        await connection.execute(text(fill))
    yield request.param, table


async def by_chunks(ctx: JobContext, table: Table) -> list[tuple[Any, ...]]:
    """Return the rows of chunks."""
    walk = ctx.chunks(select(table.c.id, table.c.region), size=20, parallel=2)
    return [tuple(row) async for batch in walk for row in batch]


async def by_stream(ctx: JobContext, table: Table) -> list[tuple[Any, ...]]:
    """Return the rows of a stream."""
    read = select(table.c.id, table.c.region).order_by(*table.primary_key.columns)
    return [tuple(row) async for batch in ctx.stream(read, size=20, parallel=2) for row in batch]


async def by_sweep(ctx: JobContext, table: Table) -> list[tuple[Any, ...]]:
    """Return the rows that a sweep has changed, as often as it has changed them."""
    await ctx.sweep(update(table).values(seen=table.c.seen + 1), size=20, parallel=2)
    async with ctx.session() as session:
        rows = await session.execute(text("SELECT id, region FROM parted, generate_series(1, seen)"))
        return [tuple(row) for row in rows]


async def test_ranges_lie_in_one_partition_each(
    parted: tuple[str, Table], context: MakeContext, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, table = parted
    walks: list[Callable[[JobContext, Table], Any]] = [by_chunks, by_sweep, by_stream]
    for number, walk in enumerate(walks):
        if number == 2:  # sampled
            monkeypatch.setattr(range_ends, "_EXACT_PAGES", 0)
            monkeypatch.setattr(range_ends, "_LEAST_KEYS_PER_RANGE", 10)
        ctx = context()
        rows = await walk(ctx, table)
        assert sorted(rows) == [(n, f"n{n % 4}") for n in range(1, ROWS + 1)], walk
        assert ctx.rows_done == ROWS
        async with database.session() as session:
            statement = text("SELECT partition, condition, rows FROM worker.step_range WHERE run_id = :id")
            found = (await session.execute(statement, {"id": ctx.run_id})).all()
        assert set(UNITS[kind]) == {row.partition for row in found if row.rows}
        assert number == 2 or max(row.rows for row in found) < 2 * ROWS / 16
    async with database.session() as session:
        for partition, condition in {row.partition: row.condition for row in found}.items():
            if condition is not None and partition not in ("others", "north1"):  # a DEFAULT excludes no other
                plan = await session.execute(text("EXPLAIN SELECT FROM parted WHERE " + condition.replace(":", "\\:")))
                scanned = [line for (line,) in plan if " on " in line]
                assert scanned and all(f" on {partition}" in line for line in scanned), scanned


async def test_rows_that_a_change_of_partitions_moves_are_walked_once(context: MakeContext, database: Database) -> None:
    table = Table("parted", MetaData(), Column("id", Integer, primary_key=True), Column("seen", Integer))
    async with database.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE parted (id int PRIMARY KEY, seen int) PARTITION BY RANGE (id)"))
        await connection.execute(text("CREATE TABLE early PARTITION OF parted FOR VALUES FROM (0) TO (501)"))
        await connection.execute(text("CREATE TABLE others PARTITION OF parted DEFAULT"))
        await connection.execute(text("INSERT INTO parted SELECT n, 0 FROM generate_series(1, 1000) AS n"))
    seen: list[int] = []
    async for batch in context().chunks(select(table.c.id), size=20, lock=False, parallel=2):
        if not seen:  # rows of the DEFAULT move to a partition of their own, with their keys
            async with database.engine.begin() as connection:
                await connection.execute(text("CREATE TABLE late (LIKE parted INCLUDING ALL)"))
                moved = "WITH moved AS (DELETE FROM others RETURNING *) INSERT INTO late SELECT * FROM moved"
                await connection.execute(text(moved))
                attach = "ALTER TABLE parted ATTACH PARTITION late FOR VALUES FROM (501) TO (1001)"
                await connection.execute(text(attach))
        seen += batch
    assert sorted(seen) == list(range(1, 1_001))
