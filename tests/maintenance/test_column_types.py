"""`archive` and `copy_table` store each value as it is, or refuse the column."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Column, Date, Integer, MetaData, Numeric, Table, Text, cast, true

from tests.maintenance.shop import Shop
from worker.errors import UsageError
from worker.maintenance import archive, copy_table
from worker.maintenance.column_types import keeps_values

metadata = MetaData()
source = Table("typed", metadata, Column("id", Integer, primary_key=True), Column("v", Numeric))
into = Table("typed_copy", metadata, Column("id", Integer, primary_key=True), Column("v", Integer))


async def make(shop: Shop, kind: str, other: str, value: str) -> None:
    """Make both tables, with one row."""
    await shop.execute_all(
        [
            "DROP TABLE IF EXISTS typed, typed_copy",
            f"CREATE TABLE typed (id int PRIMARY KEY, v {kind})",
            f"CREATE TABLE typed_copy (id int PRIMARY KEY, v {other})",
            f"INSERT INTO typed VALUES (1, {value})",
        ]
    )


LOSSY = [
    ("text", "varchar(3)", "'ab   '"),
    ("varchar(10)", "varchar(3)", "'ab   '"),
    ("varchar", "varchar(3)", "'ab   '"),
    ("char(5)", "text", "'ab'"),
    ("text", "char(5)", "'ab'"),
    ("varchar(3)[]", "text", "'{ab}'"),
    ("numeric(10, 4)", "integer", "1.6"),
    ("numeric", "numeric(10, 2)", "1.234"),
    ("numeric(10, 4)", "numeric(10, 2)", "1.2345"),
    ("bigint", "double precision", "9007199254740993"),
    ("double precision", "real", "0.1"),
    ("timestamptz", "date", "'2020-01-01 23:59+00'"),
    ("timestamptz", "timestamptz(0)", "'2020-01-01 00:00:00.9+00'"),
    ("timestamp", "timestamptz", "'2020-01-01'"),
    ("time", "time(0)", "'00:00:01.9'"),
    ("interval", "interval(0)", "'1.9 s'"),
]


@pytest.mark.parametrize(("kind", "other", "value"), LOSSY)
async def test_type_that_could_change_a_value_is_refused(shop: Shop, kind: str, other: str, value: str) -> None:
    await make(shop, kind, other, value)
    jobs: list[Any] = [archive(source, into, where=true()), copy_table(source, into)]
    jobs.append(copy_table(source, into, columns={"id": source.c.id, "v": source.c.v.label("x")}))
    for each in jobs:
        with pytest.raises(UsageError, match=r"typed_copy could change values of v \(.* to .*\): give these columns"):
            await shop.run(each)
    found = await shop.execute("SELECT (SELECT count(*) FROM typed), (SELECT count(*) FROM typed_copy)")
    assert tuple(found.one()) == (1, 0)


EXACT = [
    ("varchar(3)", "varchar(5)", "'ab '"),
    ("varchar(3)", "text", "'ab '"),
    ("text", 'varchar COLLATE "C"', "'ab '"),
    ("bigint", "smallint", "12"),
    ("integer", "numeric(10, 2)", "12"),
    ("integer", "text", "12"),
    ("numeric(10, 2)", "numeric(12, 4)", "1.25"),
    ("numeric(10, 2)", "numeric", "1.25"),
    ("real", "double precision", "0.25"),
    ("date", "timestamp", "'2020-01-01'"),
    ("timestamp(3)", "timestamp", "'2020-01-01 00:00:00.123'"),
    ("int[]", "int[]", "'{1}'"),
]


@pytest.mark.parametrize(("kind", "other", "value"), EXACT)
async def test_type_that_keeps_each_value_is_accepted(shop: Shop, kind: str, other: str, value: str) -> None:
    plain = other.partition(" COLLATE")[0]
    for make_job in (copy_table, archive):
        await make(shop, kind, other, value)
        options: Any = {"where": true()} if make_job is archive else {}
        assert await shop.run(make_job(source, into, **options)) == 1
        assert (await shop.execute(f"SELECT v = CAST({value} AS {plain}) FROM typed_copy")).scalar_one()


def test_number_that_is_rounded_before_its_point_is_refused() -> None:
    assert not keeps_values("INTEGER", "NUMERIC(5, -2)")  # from PostgreSQL 15 on


async def test_value_that_is_too_long_for_a_number_fails(shop: Shop) -> None:
    await make(shop, "bigint", "smallint", "70000")
    with pytest.raises(Exception, match="smallint out of range"):
        await shop.run(copy_table(source, into))


async def test_value_that_the_author_converts_is_copied(shop: Shop) -> None:
    await make(shop, "timestamptz", "date", "'2020-01-01 12:00+00'")
    converted = {"id": source.c.id, "v": cast(source.c.v, Date)}
    assert await shop.run(copy_table(source, into, columns=converted)) == 1
    assert (await shop.execute("SELECT v::text FROM typed_copy")).scalar_one() == "2020-01-01"
    await make(shop, "numeric", "text", "1.50")
    assert await shop.run(copy_table(source, into, columns={"id": source.c.id, "v": cast(source.c.v, Text)})) == 1
