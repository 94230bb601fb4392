"""`recompute`: only rows with other values are written, each once."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from asyncpg.exceptions import StringDataRightTruncationError
from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Column,
    Date,
    Float,
    Integer,
    Interval,
    MetaData,
    Numeric,
    String,
    Table,
    Text,
    cast,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP

from tests.maintenance.shop import Shop
from tests.maintenance.tables import Customer, Order, Total, Visit
from tests.support.sampling import sampled
from worker.errors import RegistrationError, UnsupportedStatement
from worker.maintenance import recompute

PER_SHOP = select(Visit.shop, func.count().label("visits")).group_by(Visit.shop).order_by(Visit.shop)


async def test_columns_with_other_values_are_written_once_over_an_abort(shop: Shop) -> None:
    await shop.fill(Customer, [{"id": n, "email": f"{n}"} for n in range(1, 46)])
    await shop.fill(Order, [{"customer_id": n} for n in range(1, 46, 2)])
    counted = select(func.count()).where(Order.customer_id == Customer.id).scalar_subquery()
    job = recompute(Customer, {Customer.score: counted, "balance": Customer.id * 2}, size=10)
    await shop.break_off(job, 25)
    assert await shop.resume(job) == 45
    assert await shop.list(Customer.id, Customer.score, Customer.balance) == [(n, n % 2, 2 * n) for n in range(1, 46)]
    assert await shop.read_log("UPDATE", "Customer") == dict.fromkeys(range(1, 46), 1)
    assert await shop.run(job) == 0
    assert await shop.run(recompute(Customer, {"score": 7}, where=Customer.id > 40)) == 5


async def test_totals_are_written_once_over_an_abort(shop: Shop) -> None:
    await shop.fill(Visit, [{"id": n, "shop": n // 2, "page": None} for n in range(2, 48)])
    job = recompute(Total, PER_SHOP, size=5)
    await shop.break_off(job, 13)
    assert await shop.list(Total.shop) == list(range(1, 11))
    assert await shop.resume(job) == 23
    assert await shop.list(Total.shop, Total.visits) == [(n, 2) for n in range(1, 24)]
    assert set((await shop.read_log("INSERT", "total")).values()) == {1}


async def test_totals_without_an_order_are_refused(shop: Shop) -> None:
    with pytest.raises(UnsupportedStatement, match="it has no ORDER BY"):
        await shop.run(recompute(Total, PER_SHOP.order_by(None)))


@pytest.mark.parametrize(
    ("arguments", "options", "problem"),
    [
        ((Total, {}), {}, "give the values of columns"),
        ((Total, {"vists": 1}), {}, "did you mean visits"),
        ((Total, {"shop": 1}), {}, "shop is the key that the table is walked by"),
        ((Total, PER_SHOP), {"where": Visit.id > 1}, "belong to the select"),
        ((Total, select(Visit.shop)), {}, "has to have the key and a column"),
        ((Total, select(Visit.shop, func.count())), {}, "no such column; it has shop, visits"),
    ],
)
def test_bad_arguments_are_named(arguments: Any, options: Any, problem: str) -> None:
    with pytest.raises(RegistrationError, match=problem):
        recompute(*arguments, **options)


def scalar(expression: str) -> Any:
    return literal_column(f"(SELECT {expression})")


@pytest.mark.parametrize(
    ("kind", "value", "stored"),
    sampled(
        [
            (Numeric(6, 2), literal_column("1.0 / 3"), "0.33"),
            (Numeric(6, 2), 1.005, "1.00"),
            (Numeric(6, 2), scalar("avg(x) FROM (VALUES (1), (1), (2)) AS t (x)"), "1.33"),
            (Integer, literal_column("2.5"), "3"),
            (BigInteger, scalar("count(*) FROM (VALUES (1)) AS t"), "1"),
            (Float(24), literal_column("0.1::float8"), "0.1"),
            (Date, literal_column("timestamp '2026-01-02 03:04:05'"), "2026-01-02"),
            (TIMESTAMP(precision=0), literal_column("timestamp '2026-01-02 03:04:05.6'"), "2026-01-02 03:04:06"),
            (Interval(second_precision=0), timedelta(seconds=1.6), "00:00:02"),
            (JSONB, {"a": [1, None]}, '{"a": [1, null]}'),
            (JSONB, None, "null"),
            (JSONB(none_as_null=True), None, None),
            (JSON, {"a": 1}, '{"a": 1}'),
            (ARRAY(Integer), [1, 2], "{1,2}"),
            (String(3), "abc", "abc"),
            (Integer, None, None),
        ],
        2,
    ),
    ids=str,
)
async def test_a_value_that_the_column_rounds_is_written_once(
    changed_shop: Shop, kind: Any, value: Any, stored: str | None
) -> None:
    shop = changed_shop
    table = Table("rounded", MetaData(), Column("id", Integer, primary_key=True), Column("value", kind))
    async with shop.database.engine.begin() as connection:
        await connection.run_sync(table.metadata.drop_all)
        await connection.run_sync(table.metadata.create_all)
    await shop.execute("INSERT INTO rounded (id, value) VALUES (1, NULL)")
    job = recompute(table, {"value": value}, where=table.columns.id > 0)
    assert await shop.run(job) == int(stored is not None)
    assert await shop.list(cast(table.columns.value, Text)) == [stored]
    assert await shop.run(job) == 0


async def test_a_text_that_is_too_long_is_an_error(shop: Shop) -> None:
    await shop.fill(Customer, [{"id": 1, "email": "x" * 30}])
    with pytest.raises(StringDataRightTruncationError):
        await shop.run(recompute(Customer, {"email": "x" * 31}))
