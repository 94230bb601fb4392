"""`backfill_column`: each row is filled once, by SQL or by a function."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import func

from tests.maintenance.shop import Shop
from tests.maintenance.tables import Customer, Visit, keyless
from worker.errors import RegistrationError
from worker.maintenance import backfill_column


async def fill(shop: Shop, count: int = 45) -> None:
    """Insert customers without a slug, but the seventh."""
    await shop.fill(Customer, [{"email": f"User {n}", "slug": "own" if n == 7 else None} for n in range(1, count + 1)])


async def slug_later(row: Any) -> str:
    return row.email.replace(" ", "-").lower()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "value",
    [
        func.lower(func.replace(Customer.email, " ", "-")),
        lambda row: row.email.replace(" ", "-").lower(),
        slug_later,
    ],
    ids=["sql", "function", "async"],
)
async def test_rows_are_filled_once_over_an_abort(shop: Shop, value: Any) -> None:
    await fill(shop)
    job = backfill_column(Customer, Customer.slug, value, size=10, parallel=1)
    await shop.break_off(job, 25)
    assert len(await shop.read_log("UPDATE", "Customer")) in (19, 20)  # ranges of a sweep also count other rows
    assert await shop.resume(job) == 44
    assert await shop.list(Customer.id, Customer.slug) == [(n, "own" if n == 7 else f"user-{n}") for n in range(1, 46)]
    assert await shop.read_log("UPDATE", "Customer") == {n: 1 for n in range(1, 46) if n != 7}


async def test_constant_fills_rows_of_a_condition_by_another_key(shop: Shop) -> None:
    await fill(shop, 10)
    job = backfill_column(Customer.__table__, "score", 5, where=lambda: Customer.id > 4, key="email")
    assert await shop.run(job) == 6
    assert await shop.run(job) == 6  # the condition says which rows


async def test_rows_for_which_the_function_fails_are_put_aside(shop: Shop) -> None:
    await fill(shop, 10)

    def score(row: Any) -> int:
        return 10 // (row.id - 4)

    job = backfill_column(Customer, "score", score, where=Customer.id > 3, on_error="quarantine", quarantine_limit=1)
    for _ in range(12):
        try:
            await shop.resume(job)
        except ZeroDivisionError:
            continue
        break
    assert [row for row, value in await shop.list(Customer.id, Customer.score) if value is None] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("arguments", "options", "problem"),
    [
        ((Customer, "slag", 1), {}, "column='slag': .*Customer.* has no such column; did you mean slug"),
        ((Customer, Visit.page, 1), {}, "has no such column; it has Id, balance"),
        ((Customer, ["slug"], 1), {}, "has no such column"),
        ((Customer, "id", 1), {}, "Id is the key that the table is walked by"),
        ((keyless, "a", 1), {}, "keyless has no primary key, so its rows cannot be walked: set key="),
        ((Customer, "score", 1), {"quarantine_limit": 3}, "are for a function"),
        ((Customer, "score", 1), {"where": False}, "where=False: give a condition"),
        ((Customer, "score", 1), {"key": ["email", "email"]}, "names a column twice"),
        ((Customer, "score", 1), {"timout": 3}, "did you mean timeout"),
    ],
)
def test_bad_arguments_are_named(arguments: Any, options: Any, problem: str) -> None:
    with pytest.raises(RegistrationError, match=problem):
        backfill_column(*arguments, **options)
