"""`load_file` reads back unchanged each value that `export_table` writes, also a text that looks like another value."""

from __future__ import annotations

import csv
import enum
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    JSON,
    Column,
    Date,
    DateTime,
    Enum,
    Integer,
    MetaData,
    Table,
    Text,
    Time,
    cast,
    delete,
    insert,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB

from tests.maintenance.shop import Shop
from worker.errors import InvalidRow
from worker.maintenance import export_table, load_file

FORMS = ["csv", "jsonl", "parquet"]


async def make(shop: Shop, table: Table) -> None:
    """Make a table again."""
    async with shop.database.engine.begin() as connection:
        await connection.run_sync(table.metadata.drop_all)
        await connection.run_sync(table.metadata.create_all)


async def go_round(shop: Shop, table: Table, form: Any, directory: Path) -> Path:
    """Export a table, empty it, and load the file. Return its path."""
    folder = Path(await shop.run(export_table(table, str(directory), format=form)))
    await shop.execute(delete(table))
    [path] = folder.glob(f"*.{form}")
    await shop.run(load_file(table, path))
    return path


TEXTS = ["123", "true", "null", "abc", "[1]", "", '"', "1e5"]
OTHERS: list[Any] = [12, 1.5, True, [1, "2", None], {"a": {"b": "3"}}, [], {}]


@pytest.mark.parametrize("kind", [JSON, JSONB])
@pytest.mark.parametrize("form", ["csv", "jsonl"])
async def test_texts_in_json_stay_texts(shop: Shop, tmp_path: Path, form: str, kind: Any) -> None:
    table = Table("documents", MetaData(), Column("id", Integer, primary_key=True), Column("v", kind, key="value"))
    await make(shop, table)
    values = [*TEXTS, *OTHERS]
    await shop.execute(insert(table), [{"id": n, "value": value} for n, value in enumerate(values)])
    before = await shop.list(table.c.id, cast(table.c.value, Text))
    path = await go_round(shop, table, form, tmp_path)
    assert await shop.list(table.c.id, cast(table.c.value, Text)) == before
    if form == "csv":
        assert [row["value"] for row in csv.DictReader(path.open(newline=""))][:2] == ['"123"', '"true"']


NUMBERS = ["20240101", "2024", "1_704_067_200", "1704067200.5", " 20240101", "-1", "+20240101", "2.0240101e7", ".5"]
MOMENTS = Table(
    "moments",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("aware", DateTime(timezone=True)),
    Column("naive", DateTime),
    Column("day", Date),
    Column("time", Time),
)


@pytest.mark.parametrize("column", ["aware", "naive", "day", "time"])
async def test_number_is_neither_a_date_nor_a_time(shop: Shop, tmp_path: Path, column: str) -> None:
    await make(shop, MOMENTS)
    path = tmp_path / "a.csv"
    for number in NUMBERS:
        path.write_text(f"id,{column}\n1,{number}\n")
        with pytest.raises(
            InvalidRow, match=f"line 2: {column}: .*a number is no date and no time: write it in ISO 8601"
        ):
            await shop.run(load_file(MOMENTS, path))
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"id": 1, "{column}": 20240101}}\n{{"id": 2, "{column}": "20240101"}}\n{{"id": 3}}\n')
    assert await shop.run(load_file(MOMENTS, path, on_error="quarantine", quarantine_limit=2)) == 1
    assert await shop.list(MOMENTS.c.id) == [3]


NAMES = [
    "_id",
    "__x",
    "model_config",
    "model_dump",
    "model_fields_set",
    "copy",
    "json",
    "self",
    "class",
    "column_0",
    "a b",
]


@pytest.mark.parametrize("form", FORMS)
async def test_column_may_have_any_name(shop: Shop, tmp_path: Path, form: str) -> None:
    columns = [Column(name, Text, server_default="none") for name in NAMES]
    table = Table("odd names", MetaData(), Column("model_fields", Integer, primary_key=True), *columns)
    await make(shop, table)
    await shop.execute(insert(table), [{"model_fields": 1} | {name: f"of {name}" for name in NAMES}])
    before = await shop.list(*table.columns)
    await go_round(shop, table, form, tmp_path)
    assert await shop.list(*table.columns) == before


async def test_bad_row_is_described_by_the_columns_of_the_file(shop: Shop, tmp_path: Path) -> None:
    table = Table("odd names", MetaData(), Column("_id", Integer, primary_key=True, autoincrement=False))
    table.append_column(Column("copy", Integer))
    await make(shop, table)
    path = tmp_path / "a.csv"
    for text, problem in (("_id,copy\n1,x\n", "copy: "), ("copy\n1\n", "_id: "), ("column_1\n1\n", "column_1: Extra")):
        path.write_text(text)
        with pytest.raises(InvalidRow, match=f"line 2: .*{problem}"):
            await shop.run(load_file(table, path))


class Mood(enum.Enum):
    """Each member has the name of the other one as its value."""

    a = "b"
    b = "a"


class Level(enum.IntEnum):
    """Values that are no texts."""

    low = 0
    high = 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("by_value", [False, True])
async def test_member_of_an_enum_stays_the_same(shop: Shop, tmp_path: Path, form: str, by_value: bool) -> None:
    options: Any = {"values_callable": lambda kind: [str(member.value) for member in kind]} if by_value else {}
    kinds = {"mood": Enum(Mood, native_enum=False, **options), "level": Enum(Level, native_enum=False)}
    columns = [Column(name, kind) for name, kind in kinds.items()]
    table = Table("moods", MetaData(), Column("id", Integer, primary_key=True), *columns)
    await make(shop, table)
    rows = [{"id": 1, "mood": Mood.a, "level": Level.low}, {"id": 2, "mood": Mood.b, "level": Level.high}]
    await shop.execute(insert(table), rows)
    await go_round(shop, table, form, tmp_path)
    assert await shop.list(*table.columns) == [tuple(row.values()) for row in rows]


async def test_member_of_an_enum_may_be_given_by_its_name(shop: Shop, tmp_path: Path) -> None:
    table = Table(
        "moods", MetaData(), Column("id", Integer, primary_key=True), Column("level", Enum(Level, native_enum=False))
    )
    await make(shop, table)
    path = tmp_path / "a.csv"
    path.write_text("id,level\n1,low\n2,1\n")
    assert await shop.run(load_file(table, path)) == 2
    async with shop.database.session() as session:
        assert list(await session.scalars(select(table.c.level).order_by(table.c.id))) == [Level.low, Level.high]
