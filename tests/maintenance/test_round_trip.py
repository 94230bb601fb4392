"""What `export_table` writes, `load_file` reads back, for each type of a column."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import (
    ARRAY,
    Boolean,
    Column,
    Computed,
    Date,
    DateTime,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Numeric,
    Table,
    Text,
    cast,
    delete,
    insert,
    null,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from worker import Settings
from worker.errors import InvalidRow
from worker.maintenance import export_table, load_file
from worker.testing.runner import JobRunner
from worker.types import Database

metadata = MetaData()
kinds = Table(
    'all % kinds"',
    metadata,
    Column("or der", Integer, primary_key=True),
    Column("SELECT", Text, primary_key=True),
    Column("a:b", Integer, Computed('"or der" * 2', persisted=True)),
    Column("json", JSONB),
    Column("array", ARRAY(Integer)),
    Column("bytes", LargeBinary),
    Column("interval", Interval),
    Column("date", Date),
    Column("at", DateTime(timezone=True)),
    Column("number", Numeric),
    Column("bool", Boolean),
)
ROWS: list[dict[str, Any]] = [
    {
        "or der": number,
        "SELECT": f"k%{number}'\"\n\r",
        "json": {"a": [number, number], "b": "é"},
        "array": [1, number],
        "bytes": b"\xff\x00\xfb",
        "interval": timedelta(days=number, microseconds=1),
        "date": date(2026, 1, 1 + number),
        "at": datetime(2026, 1, 1, microsecond=1, tzinfo=UTC),
        "number": Decimal("1.10"),
        "bool": number == 1,
    }
    for number in range(3)
]
ROWS.append({**dict.fromkeys(ROWS[0]), "or der": 3, "SELECT": "x"})


@pytest_asyncio.fixture
async def runner(database: Database, settings: Settings) -> AsyncIterator[JobRunner]:
    """Run jobs on the table."""
    async with database.engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    made = JobRunner(database, settings)
    yield made
    made.close()
    async with database.engine.begin() as connection:
        await connection.run_sync(metadata.drop_all)


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
async def test_an_exported_table_can_be_loaded(
    runner: JobRunner, database: Database, tmp_path: Path, form: Any
) -> None:
    async with database.transaction() as session:
        await session.execute(insert(kinds), ROWS)
        before = (await session.execute(select(kinds))).all()
    await runner(export_table(kinds, str(tmp_path), format=form, name="export_kinds"))
    async with database.transaction() as session:
        await session.execute(delete(kinds))
    [path] = [path for path in tmp_path.rglob("*") if path.suffix == f".{form}"]
    assert await runner(load_file(kinds, path, name="load_kinds")) == 4
    async with database.session() as session:
        assert set(map(repr, (await session.execute(select(kinds))).all())) == set(map(repr, before))


async def test_bytes_are_base64_or_hexadecimal(runner: JobRunner, database: Database, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("or der,SELECT,bytes\n1,a,\\xff00\n2,a,/wA=\n3,a,_wA=\n")
    load = load_file(kinds, name="load_bytes")
    assert await runner(load, path=str(path)) == 3
    async with database.session() as session:
        assert set(await session.scalars(select(kinds.c.bytes))) == {b"\xff\x00"}
    path.write_text("or der,SELECT,array,bytes\n4,a,{1},x\n")
    with pytest.raises(InvalidRow, match=r"line 2: array: .*; bytes: "):
        await runner(load, path=str(path))


@pytest.mark.parametrize("on_conflict", ["error", "update"])
@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
async def test_null_in_a_column_of_json_stays_null(
    runner: JobRunner, database: Database, tmp_path: Path, form: Any, on_conflict: Any
) -> None:
    values = {1: null(), 2: {"a": None}, 3: null()}
    async with database.transaction() as session:
        for number, value in values.items():
            await session.execute(insert(kinds).values({"or der": number, "SELECT": "x", "json": value}))
    await runner(export_table(kinds, str(tmp_path), format=form, name="export_kinds"))
    async with database.transaction() as session:
        if on_conflict == "error":
            await session.execute(delete(kinds))
        else:
            await session.execute(update(kinds).values(json=[1]))
    [path] = [path for path in tmp_path.rglob("*") if path.suffix == f".{form}"]
    assert await runner(load_file(kinds, path, name="load_kinds", on_conflict=on_conflict)) == 3
    async with database.session() as session:
        found = await session.execute(select(cast(kinds.c.json, Text)).order_by(kinds.c["or der"]))
        assert list(found.scalars()) == [None, '{"a": null}', None]
