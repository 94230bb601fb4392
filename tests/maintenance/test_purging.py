"""`purge`: children first, in batches; nothing else, and nothing twice, whatever breaks off."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Column, ForeignKey, Integer, MetaData, Table, and_, delete, exists, insert, true

from tests.maintenance.shop import Shop
from tests.maintenance.tables import NOW, Card, Customer, Line, Order, Ring, Shipment, Tree, Visit, note
from worker.errors import UnsupportedStatement, UsageError
from worker.maintenance import purge


async def fill_tree(shop: Shop, count: int = 30) -> None:
    """Insert customers, the first half of them old, each with two orders of two lines, and what refers to them."""
    customers = range(1, count + 1)
    old = NOW - timedelta(days=400)
    await shop.fill(
        Customer, [{"id": n, "email": f"{n}", "joined_at": old if n <= count // 2 else NOW} for n in customers]
    )
    orders = [(2 * n + i, n) for n in customers for i in (0, 1)]
    await shop.fill(Order, [{"id": order, "customer_id": n} for order, n in orders])
    lines = [{"order_id": order, "number": i} for order, _ in orders for i in (1, 2)]
    await shop.fill(Line, lines)
    await shop.fill(Shipment, [{"order_id": each["order_id"], "number": each["number"]} for each in lines])
    await shop.fill(Shipment, [{"customer_id": n} for n in customers])
    await shop.fill(note, [{"customer_id": n} for n in customers])
    await shop.fill(Card, [{"customer_id": n} for n in customers])


@pytest.mark.parametrize("children", ["first", "with_parents"])
async def test_children_of_old_rows_are_deleted_with_them_over_an_abort(shop: Shop, children: Any) -> None:
    await fill_tree(shop)
    job = purge(Customer, older_than=timedelta(days=365), by=Customer.joined_at, children=children, size=4)
    await shop.break_off(job, 9)  # a customer; and, of the children, the orders of the third
    assert await shop.count(Customer) > 15
    assert await shop.resume(job) == 15
    kept = range(16, 31)
    assert await shop.list(Customer.id) == list(kept)
    assert await shop.list(Order.customer_id) == [n for n in kept for _ in (0, 1)]
    assert await shop.count(Line) == 60
    assert await shop.count(Shipment) == 75
    assert await shop.list(note.c.customer_id) == list(kept)
    assert await shop.list(Card.customer_id) == [*kept, *[None] * 15]
    assert set((await shop.read_log("DELETE", "Customer")).values()) == {1}
    assert len(await shop.read_log("DELETE", "order")) == 30
    if children == "first":
        assert await shop.count_largest_transaction("DELETE") == 4


async def test_rows_without_children_are_deleted_by_condition_and_age(shop: Shop) -> None:
    await shop.fill_visits(45)
    job = purge(Visit, where=Visit.shop == 1, older_than=timedelta(hours=20), by="at", size=10)
    assert await shop.run(job) == 9  # of 25 visits
    assert await shop.run(job, older_than=timedelta(hours=40)) == 0
    assert await shop.run(job, older_than=timedelta(hours=2)) == 6
    assert await shop.run(purge(Visit.__table__, where=lambda: Visit.shop == 0)) == 15
    assert await shop.list(Visit.shop) == [2] * 15
    with pytest.raises(UsageError, match="give a positive timedelta"):
        await shop.run(job, older_than=timedelta(0))


async def test_children_that_arrive_during_the_walk_do_not_stop_it(changed_shop: Shop) -> None:
    shop = changed_shop
    await fill_tree(shop)
    await shop.execute(
        'CREATE FUNCTION "My Shop".add() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN '
        'INSERT INTO "My Shop"."order" (id, customer_id) VALUES (999, 5); RETURN NULL; END $$'
    )
    await shop.execute(
        'CREATE TRIGGER add AFTER DELETE ON "My Shop"."order" FOR EACH ROW WHEN (OLD.id = 10) '
        'EXECUTE FUNCTION "My Shop".add()'
    )
    assert await shop.run(purge(Customer, where=Customer.id <= 10, size=4, parallel=2)) == 10
    assert await shop.count(Customer) == 20


@pytest.mark.parametrize(("entity", "circle"), [(Tree, "tree → .*tree"), (Ring, "(ring|stone) → .*(ring|stone)")])
async def test_circular_foreign_keys_are_refused_and_nothing_is_deleted(shop: Shop, entity: Any, circle: str) -> None:
    await shop.fill(entity, [{"id": 1}])
    with pytest.raises(UnsupportedStatement, match=f"are circular: My Shop.{circle}.*ON DELETE SET NULL"):
        await shop.run(purge(entity, where=true()))
    assert await shop.count(entity) == 1
    assert await shop.run(purge(entity, where=true(), children="leave")) == 1


async def test_index_that_a_foreign_key_lacks_is_logged(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    await fill_tree(shop, 4)
    with caplog.at_level(logging.WARNING, "longhaul"):
        await shop.run(purge(Customer, where=true()))
    assert 'CREATE INDEX CONCURRENTLY ON "My Shop".shipment (customer_id)' in caplog.text


async def test_children_that_hold_on_to_rows_without_a_key_or_decide_on_their_parents(changed_shop: Shop) -> None:
    shop, metadata = changed_shop, MetaData()
    root = Table("root", metadata, Column("id", Integer, primary_key=True), Column("v", Integer))
    child = Table("child", metadata, Column("id", Integer, ForeignKey("root.id"), primary_key=True))
    other = Table("other", metadata, Column("id", Integer, ForeignKey("root.id"), primary_key=True))
    keyless = Table("grandchild", metadata, Column("child_id", Integer, ForeignKey("child.id")))
    tables = (root, child, other, keyless)
    async with shop.database.engine.begin() as connection:
        await connection.run_sync(metadata.drop_all)
        await connection.run_sync(metadata.create_all)
    for table in tables:
        await shop.execute(insert(table), [{table.columns[0].name: n} for n in range(1, 13)])
    assert await shop.run(purge(root, where=root.columns.id < 4, size=2)) == 3
    assert [await shop.count(table) for table in tables] == [9, 9, 9, 9]
    await shop.execute(delete(other).where(other.columns.id > 8))
    has_other = exists().where(other.columns.id == root.columns.id)
    assert await shop.run(purge(root, where=and_(root.columns.id < 7, has_other), size=2)) == 3
    assert [await shop.count(table) for table in tables] == [6, 6, 2, 6]
    assert await shop.run(purge(root, where=~has_other, size=2)) == 4
    assert [await shop.count(table) for table in tables] == [2, 2, 2, 2]
