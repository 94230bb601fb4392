"""The baseline: good code written by hand, without resuming, fencing or progress.

The functions whose names end in `_resumable` keep a cursor in the transaction of each batch, as a careful author would:
they take effect once for each row, and can go on after a crash. They have no fence, lease, progress or throttle.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.tables import Bench, Copy, Reader

_READ = "SELECT id, name, score FROM bench_reader WHERE id > $1 ORDER BY id LIMIT $2 FOR NO KEY UPDATE"
_UPDATE = """
UPDATE bench_reader AS target SET score = given.score
  FROM unnest($1::int[], $2::int[]) AS given (id, score) WHERE target.id = given.id
"""
_UPSERT = """
INSERT INTO bench_copy (id, name, score) SELECT * FROM unnest($1::int[], $2::text[], $3::int[])
    ON CONFLICT (id) DO UPDATE SET name = excluded.name, score = excluded.score
"""
COPY = "INSERT INTO bench_copy (id, name, score) SELECT id, name, score FROM bench_reader"
_MOVE = "UPDATE bench_cursor SET after = $1, rows = rows + $2"
_RANGE_END = "SELECT max(id) FROM (SELECT id FROM bench_reader WHERE id > $1 ORDER BY id LIMIT $2) AS page"
_OBJECTS = select(Reader).order_by(Reader.id).with_for_update(key_share=True)
_CURSOR = "SELECT id, name, score FROM bench_reader ORDER BY id"


@asynccontextmanager
async def _driver(bench: Bench) -> AsyncIterator[Any]:
    async with bench.database.engine.connect() as connection:
        yield (await connection.get_raw_connection()).driver_connection


async def _begin(driver: Any) -> int:
    """Create the row of the cursor. Return the key before the first."""
    await driver.execute("CREATE TABLE IF NOT EXISTS bench_cursor (id int PRIMARY KEY, after int, rows int)")
    await driver.execute("TRUNCATE bench_cursor")
    await driver.execute("INSERT INTO bench_cursor VALUES (1, 0, 0)")
    return 0


async def keyset_update(bench: Bench, size: int) -> int:
    """Read by key, change in Python, write by one statement: asyncpg."""
    done, after = 0, 0
    async with _driver(bench) as driver:
        while True:
            async with driver.transaction():
                rows = await driver.fetch(_READ, after, size)
                if not rows:
                    return done
                await driver.execute(_UPDATE, [row[0] for row in rows], [row[2] + len(row[1]) for row in rows])
            done, after = done + len(rows), rows[-1][0]


async def keyset_update_resumable(bench: Bench, size: int) -> int:
    """Do the same, with a cursor in the transaction."""
    done = 0
    async with _driver(bench) as driver:
        after = await _begin(driver)
        while True:
            async with driver.transaction():
                rows = await driver.fetch(_READ, after, size)
                if not rows:
                    return done
                await driver.execute(_UPDATE, [row[0] for row in rows], [row[2] + len(row[1]) for row in rows])
                await driver.execute(_MOVE, rows[-1][0], len(rows))
            done, after = done + len(rows), rows[-1][0]


async def keyset_orm(bench: Bench, size: int) -> int:
    """Read by key, change objects: the ORM's own unit of work."""

    def change(readers: Sequence[Reader]) -> None:
        for reader in readers:
            reader.score += 1

    return await _walk_objects(bench, size, change)


async def objects_read(bench: Bench, size: int) -> int:
    """Read objects by key, and change nothing: no loop over objects can be faster."""
    return await _walk_objects(bench, size, lambda readers: None)


async def _walk_objects(bench: Bench, size: int, change: Callable[[Sequence[Reader]], None]) -> int:
    done, after = 0, 0
    while True:
        async with AsyncSession(bench.database.engine, expire_on_commit=False) as session:
            readers = (await session.scalars(_OBJECTS.limit(size).where(Reader.id > after))).all()
            if not readers:
                return done
            change(readers)
            await session.commit()
            done, after = done + len(readers), readers[-1].id


async def objects_written_by_one_statement(bench: Bench, size: int) -> int:
    """Read and change objects, write them by one statement, with a cursor in the transaction."""
    done = 0
    async with bench.database.engine.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        after = await _begin(driver)
        await connection.commit()
        while True:
            async with AsyncSession(connection, expire_on_commit=False) as session:
                readers = (await session.scalars(_OBJECTS.limit(size).where(Reader.id > after))).all()
                if not readers:
                    return done
                for reader in readers:
                    reader.score += 1
                await driver.execute(_UPDATE, [one.id for one in readers], [one.score for one in readers])
                session.expunge_all()
                done, after = done + len(readers), readers[-1].id
                await driver.execute(_MOVE, after, len(readers))
                await session.commit()


async def seed_offset(bench: Bench, size: int, *, first: int, rows: int) -> int:
    """The seed's OFFSET loop, over a number of rows from a given row on: each page is slower than the one before."""
    offset = first
    async with AsyncSession(bench.database.engine, expire_on_commit=False) as session:
        while offset < first + rows:
            readers = (await session.scalars(select(Reader).order_by(Reader.id).offset(offset).limit(size))).all()
            for reader in readers:
                reader.score += 1
            await session.commit()
            offset += size
    return rows


async def ranges(bench: Bench, size: int, statement: str) -> int:
    """Run a statement for ranges of the key: asyncpg."""
    return await _ranges_between(bench, size, statement, 1, bench.rows + 1)


async def _ranges_between(bench: Bench, size: int, statement: str, begin: int, end: int) -> int:
    done = 0
    async with _driver(bench) as driver:
        for first in range(begin, end, size):
            last = min(first + size, end)
            status = await driver.execute(f"{statement} WHERE id >= $1 AND id < $2", first, last)
            done += int(status.split()[-1])
    return done


async def ranges_resumable(bench: Bench, size: int, statement: str) -> int:
    """Do the same for keys with gaps: the end of each range is looked up, and a cursor is in the transaction."""
    done = 0
    async with _driver(bench) as driver:
        after = await _begin(driver)
        while True:
            async with driver.transaction():
                last = await driver.fetchval(_RANGE_END, after, size)
                if last is None:
                    return done
                status = await driver.execute(f"{statement} WHERE id > $1 AND id <= $2", after, last)
                rows = int(status.split()[-1])
                await driver.execute(_MOVE, last, rows)
            done, after = done + rows, last


async def ranges_by_two(bench: Bench, size: int, statement: str) -> int:
    """Run a statement for ranges of the key, each half of the table by a connection of its own."""
    middle = bench.rows // 2
    bounds = ((1, middle), (middle, bench.rows + 1))
    return sum(await asyncio.gather(*(_ranges_between(bench, size, statement, *half) for half in bounds)))


async def giant(bench: Bench, statement: str) -> int:
    """Run a statement once, over all rows."""
    async with _driver(bench) as driver:
        return int((await driver.execute(statement, timeout=600)).split()[-1])


async def cursor_read(bench: Bench, size: int) -> int:
    """Read a result through a cursor: asyncpg."""
    seen = 0
    async with _driver(bench) as driver, driver.transaction(isolation="repeatable_read", readonly=True):
        cursor = await driver.cursor(_CURSOR)
        while rows := await cursor.fetch(size):
            for _, _, _ in rows:
                seen += 1
    return seen


async def cursor_upsert(bench: Bench, size: int) -> int:
    """Read on one connection, upsert on another, with a commit for each partition: asyncpg."""
    done = 0
    async with (
        _driver(bench) as reader,
        _driver(bench) as writer,
        reader.transaction(isolation="repeatable_read", readonly=True),
    ):
        cursor = await reader.cursor(_CURSOR)
        while rows := await cursor.fetch(size):
            await writer.execute(
                _UPSERT, [row[0] for row in rows], [row[1] for row in rows], [row[2] + 1 for row in rows]
            )
            done += len(rows)
    return done


async def copy_dicts(bench: Bench, size: int) -> int:
    """Insert rows that are given as dicts, by COPY: asyncpg."""
    done = 0
    columns = ["id", "name", "score"]
    async with _driver(bench) as driver:
        for first in range(0, bench.rows, size):
            rows = [{"id": n, "name": f"name {n}", "score": n} for n in range(first, min(first + size, bench.rows))]
            records = [(row["id"], row["name"], row["score"]) for row in rows]
            await driver.copy_records_to_table("bench_copy", records=records, columns=columns)
            done += len(rows)
    return done


async def copy_insert(bench: Bench, size: int) -> int:
    """Insert by COPY: asyncpg."""
    done = 0
    async with _driver(bench) as driver:
        for first in range(0, bench.rows, size):
            rows = [(n, f"name {n}", n) for n in range(first, min(first + size, bench.rows))]
            await driver.copy_records_to_table("bench_copy", records=rows, columns=["id", "name", "score"])
            done += len(rows)
    return done


async def seed_insert(bench: Bench, size: int, rows: int) -> int:
    """The seed's insert().values(list): at most 32,767 parameters, compiled anew each time."""
    async with AsyncSession(bench.database.engine) as session:
        for first in range(0, rows, size):
            values = [{"id": n, "name": f"name {n}", "score": n} for n in range(first, min(first + size, rows))]
            await session.execute(insert(Copy).values(values))
            await session.commit()
    return rows
