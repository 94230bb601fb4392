"""Transfers: the sum of money is constant, and no account is overdrawn."""

from __future__ import annotations

import asyncio
import random
from decimal import Decimal

import pytest
from sqlalchemy import select

from jobs.accounts import TransferRefused, transfer_funds
from jobs.models import Account
from worker.testing.runner import JobRunner
from worker.types import Database


async def balances(database: Database) -> dict[int, Decimal]:
    async with database.session() as session:
        return {account.id: account.balance for account in await session.scalars(select(Account))}


@pytest.fixture
async def accounts(tables: Database) -> Database:
    """Three accounts with 100 each."""
    async with tables.transaction() as session:
        session.add_all(Account(id=number, owner=f"owner {number}", balance=Decimal(100)) for number in (1, 2, 3))
    return tables


async def test_money_moves(accounts: Database, run_job: JobRunner) -> None:
    assert await run_job(transfer_funds, source=1, target=2, amount=Decimal("30.50")) == Decimal("69.50")
    assert await balances(accounts) == {1: Decimal("69.50"), 2: Decimal("130.50"), 3: Decimal(100)}


@pytest.mark.parametrize(
    ("source", "target", "amount", "message"),
    [
        (1, 2, "100.01", "account 1 has 100.00, not 100.01"),
        (1, 2, "0", "a positive number"),
        (1, 2, "0.001", "two decimals"),
        (1, 1, "1", "are the same"),
        (1, 9, "1", "there is no account 9"),
    ],
)
async def test_what_cannot_be_is_refused_and_changes_nothing(
    accounts: Database, run_job: JobRunner, source: int, target: int, amount: str, message: str
) -> None:
    with pytest.raises(TransferRefused, match=message):
        await run_job(transfer_funds, source=source, target=target, amount=Decimal(amount))
    assert set((await balances(accounts)).values()) == {Decimal(100)}


async def test_transfers_at_the_same_time_neither_lose_money_nor_overdraw(
    accounts: Database, run_job: JobRunner
) -> None:
    chance = random.Random(3)
    refused = 0

    async def transfer() -> None:
        nonlocal refused
        source, target = chance.sample([1, 2, 3], 2)
        try:
            await run_job(transfer_funds, source=source, target=target, amount=Decimal(chance.randint(1, 90)))
        except TransferRefused:
            refused += 1

    for _ in range(10):
        await asyncio.gather(*(transfer() for _ in range(12)))
    after = await balances(accounts)
    assert sum(after.values()) == 300
    assert min(after.values()) >= 0
    assert 0 < refused < 120
