"""`archive`: a row is in one of the two tables, whatever breaks off."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, text, true

from tests.maintenance.shop import Shop
from tests.maintenance.tables import Customer, Missing, OldVisit, Visit, keyless
from worker.errors import RegistrationError, UnsupportedStatement, UsageError
from worker.maintenance import archive, dedupe, purge
from worker.plan import make_plan


async def test_rows_are_moved_once_over_an_abort(shop: Shop) -> None:
    await shop.fill_visits(45)
    job = archive(Visit, OldVisit, older_than=timedelta(hours=10), by=Visit.at, size=10)
    await shop.break_off(job, 25)
    moved = await shop.list(OldVisit.id)
    assert moved == list(range(1, 21))
    assert await shop.list(Visit.id) == list(range(21, 46))
    assert await shop.resume(job) == 35
    assert await shop.list(OldVisit.id, OldVisit.seconds, OldVisit.minutes) == [(n, n, n // 60) for n in range(1, 36)]
    assert await shop.list(Visit.id) == list(range(36, 46))
    for operation, table in (("DELETE", "visit"), ("INSERT", "old visit")):
        assert await shop.read_log(operation, table) == dict.fromkeys(range(1, 36), 1)


async def test_batch_that_a_trigger_keeps_from_being_deleted_is_rolled_back(changed_shop: Shop) -> None:
    shop = changed_shop
    await shop.fill_visits(10)
    await shop.execute(
        'CREATE FUNCTION "My Shop".keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$'
    )
    await shop.execute(
        'CREATE TRIGGER keep BEFORE DELETE ON "My Shop".visit FOR EACH ROW WHEN (OLD.id = 5) '
        'EXECUTE FUNCTION "My Shop".keep()'
    )
    with pytest.raises(UsageError, match="of 10 rows, 10 were copied and 9 deleted: a trigger"):
        await shop.run(archive(Visit, OldVisit, where=true()))
    assert (await shop.count(Visit), await shop.count(OldVisit)) == (10, 0)


async def test_database_decides_which_columns_are_moved(changed_shop: Shop) -> None:
    shop = changed_shop
    await shop.fill_visits(3)
    job = archive(Visit, OldVisit, where=true())
    await shop.execute('ALTER TABLE "My Shop".visit ADD COLUMN "odd name" text DEFAULT \'kept\'')
    with pytest.raises(UsageError, match=r'"old visit" of the database lacks odd name of "My Shop".visit'):
        await shop.run(job)
    await shop.execute('ALTER TABLE "My Shop"."old visit" ADD COLUMN "odd name" text')
    await shop.execute('ALTER TABLE "My Shop"."old visit" ADD COLUMN reason text NOT NULL')
    with pytest.raises(UsageError, match=r"has no value for reason of .* declare a default"):
        await shop.run(job)
    await shop.execute('ALTER TABLE "My Shop"."old visit" ALTER COLUMN reason SET DEFAULT \'old\'')
    await shop.execute('ALTER TABLE "My Shop"."old visit" ALTER COLUMN at TYPE date, ALTER COLUMN shop TYPE bigint')
    with pytest.raises(UsageError, match=r"could change values of at \(TIMESTAMP WITHOUT TIME ZONE to DATE\): give"):
        await shop.run(job)
    await shop.execute('ALTER TABLE "My Shop"."old visit" ALTER COLUMN at TYPE timestamp')
    assert await shop.run(job) == 3
    found = await shop.execute('SELECT DISTINCT "odd name", reason FROM "My Shop"."old visit"')
    assert [tuple(row) for row in found] == [("kept", "old")]


async def test_rows_that_others_refer_to_are_refused(changed_shop: Shop) -> None:
    shop = changed_shop
    await shop.execute('CREATE TABLE "My Shop"."Old" (LIKE "My Shop"."Customer")')
    old = Customer.__table__.to_metadata(type(Customer.metadata)(schema="My Shop"), name="Old")
    with pytest.raises(UnsupportedStatement, match=r"refer to .*Customer.*order \(customer_id\).*ON DELETE CASCADE"):
        await shop.run(archive(Customer, old, where=true()))


async def test_missing_table_is_named(shop: Shop) -> None:
    with pytest.raises(UsageError, match=r'there is no table "My Shop".missing in the database: create it'):
        await shop.run(archive(Visit, Missing, where=true()))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((Visit, Visit), "cannot be archived into itself"),
        ((OldVisit, Visit), 'lacks minutes of "My Shop"."old visit"'),
        ((keyless, Visit), "lacks a of keyless"),
        ((Visit, "old visit"), "'old visit' is neither a mapped class nor a Table"),
    ],
)
def test_bad_arguments_are_named(arguments: Any, problem: str) -> None:
    with pytest.raises(RegistrationError, match=problem):
        archive(*arguments, where=true())


@pytest.mark.parametrize("referred", ["log", "log_1"])
@pytest.mark.parametrize("walked", ["log", "log_1"])
@pytest.mark.parametrize("make", ["archive", "dedupe"])
async def test_children_of_a_partition_and_of_its_table_are_found(
    changed_shop: Shop, make: str, walked: str, referred: str
) -> None:
    shop = changed_shop
    for statement in (
        "DROP TABLE IF EXISTS note, log, old_log",
        "CREATE TABLE log (id int PRIMARY KEY, v int) PARTITION BY RANGE (id)",
        "CREATE TABLE log_1 PARTITION OF log FOR VALUES FROM (0) TO (100)",
        "CREATE TABLE old_log (LIKE log)",
        f"CREATE TABLE note (id int PRIMARY KEY REFERENCES {referred} ON DELETE CASCADE)",
        "INSERT INTO log SELECT n, 1 FROM generate_series(1, 9) AS n",
        "INSERT INTO note SELECT id FROM log",
    ):
        await shop.execute(statement)
    table, old = (
        Table(name, MetaData(), Column("id", Integer, primary_key=True), Column("v", Integer))
        for name in (walked, "old_log")
    )
    job = archive(table, old, where=true()) if make == "archive" else dedupe(table, "v")
    with pytest.raises(UnsupportedStatement, match=r"public.note \(id\) ON DELETE CASCADE"):
        await shop.run(job)
    [loop] = (await make_plan(purge(table, where=true(), children="leave"), shop.settings)).loops
    assert [(child.child, child.on_delete) for child in loop.children] == [("note", "CASCADE")]
    assert await shop.run(purge(table, where=table.columns.id < 4, size=2)) == 3
    assert await shop.list(text("(SELECT count(*) FROM note)")) == [6]
