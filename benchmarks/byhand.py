"""The baseline: good code written by hand, without resuming, fencing or progress."""

from __future__ import annotations

from collections.abc import AsyncIterator
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
_CURSOR = "SELECT id, name, score FROM bench_reader ORDER BY id"


@asynccontextmanager
async def _driver(bench: Bench) -> AsyncIterator[Any]:
    async with bench.database.engine.connect() as connection:
        yield (await connection.get_raw_connection()).driver_connection


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


async def keyset_orm(bench: Bench, size: int) -> int:
    """Read by key, change objects: the ORM's own unit of work."""
    done, after = 0, 0
    read = select(Reader).order_by(Reader.id).limit(size).with_for_update(key_share=True)
    while True:
        async with AsyncSession(bench.database.engine, expire_on_commit=False) as session:
            readers = (await session.scalars(read.where(Reader.id > after))).all()
            if not readers:
                return done
            for reader in readers:
                reader.score += 1
            await session.commit()
            done, after = done + len(readers), readers[-1].id


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
    done = 0
    async with _driver(bench) as driver:
        for first in range(1, bench.rows + 1, size):
            status = await driver.execute(f"{statement} WHERE id >= $1 AND id < $2", first, first + size)
            done += int(status.split()[-1])
    return done


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
