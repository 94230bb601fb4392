"""`validate_constraint`: a constraint is added NOT VALID, and then validated."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

from tests.maintenance.shop import Shop
from tests.maintenance.tables import Customer, Missing, Order, Visit
from worker.errors import NonRetryableError, RegistrationError, UsageError
from worker.maintenance import validate_constraint

CHECK = '"Score is positive"'


async def is_valid(shop: Shop, name: str) -> bool | None:
    """Return whether a constraint is validated; None if there is none."""
    found = (await shop.execute(f"SELECT convalidated FROM pg_constraint WHERE conname = '{name}'")).all()
    return found[0][0] if found else None


async def test_missing_constraint_is_added_and_rows_that_violate_it_leave_it_not_valid(changed_shop: Shop) -> None:
    shop = changed_shop
    await shop.execute(f'ALTER TABLE "My Shop"."Customer" DROP CONSTRAINT {CHECK}')
    await shop.fill(Customer, [{"email": "a", "score": -1}])
    job = validate_constraint(Customer, "Score is positive")
    with pytest.raises(NonRetryableError, match=r"violate Score is positive: .*New rows are checked\. Correct"):
        await shop.run(job)
    assert await is_valid(shop, "Score is positive") is False
    with pytest.raises(DBAPIError, match="violates check constraint"):
        await shop.fill(Customer, [{"email": "b", "score": -1}])
    await shop.execute('UPDATE "My Shop"."Customer" SET score = 1')
    assert await shop.run(job) is True
    assert await is_valid(shop, "Score is positive") is True
    assert await shop.run(job) is False


async def test_foreign_key_is_added_and_validated_while_others_write(changed_shop: Shop) -> None:
    shop = changed_shop
    [name] = (
        await shop.execute(
            "SELECT conname FROM pg_constraint WHERE conrelid = '\"My Shop\".\"order\"'::regclass AND contype = 'f'"
        )
    ).one()
    await shop.execute(f'ALTER TABLE "My Shop"."order" DROP CONSTRAINT "{name}"')
    key = next(each for each in Order.__table__.constraints if each.name is None and each.columns.keys() != ["id"])
    key.name = name
    try:
        job = validate_constraint(Order, name)
        assert await shop.run(job) is True
    finally:
        key.name = None
    assert await is_valid(shop, name) is True


async def test_lock_that_others_hold_ends_the_attempt_soon(changed_shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = changed_shop
    monkeypatch.setattr("worker.maintenance.constraints._LOCK_TIMEOUT_SECONDS", 0.1)
    await shop.execute(f'ALTER TABLE "My Shop"."Customer" DROP CONSTRAINT {CHECK}')
    job = validate_constraint(Customer, "Score is positive")
    async with shop.database.transaction() as session:
        await session.execute(Customer.__table__.select())
        with pytest.raises(DBAPIError, match="lock timeout"):
            await shop.resume(job)
    assert await is_valid(shop, "Score is positive") is None
    assert await shop.resume(job) is True


async def test_constraint_or_table_that_does_not_exist_is_named(shop: Shop) -> None:
    with pytest.raises(UsageError, match=r"neither the model nor the database have a constraint nothing of .*Score"):
        await shop.run(validate_constraint(Customer, "nothing"))
    with pytest.raises(UsageError, match=r'there is no table "My Shop".missing'):
        await shop.run(validate_constraint(Missing, "nothing"))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ((Customer, "one email"), "one email is a UniqueConstraint: only CHECK and FOREIGN KEY can be NOT VALID"),
        ((Customer, ""), "give the name of a constraint"),
        ((Customer, Visit), "give the name of a constraint"),
        (("Customer", "x"), "'Customer' is neither a mapped class nor a Table"),
    ],
)
def test_bad_arguments_are_named(arguments: Any, problem: str) -> None:
    with pytest.raises(RegistrationError, match=problem):
        validate_constraint(*arguments)
