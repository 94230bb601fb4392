"""Money between accounts: explicit transactions and ordered row locks."""

from __future__ import annotations

from decimal import Decimal

from sqlalchemy import select

from jobs.models import Account
from worker import JobContext, NonRetryableError, job


class TransferRefused(NonRetryableError):
    """The transfer cannot take place, now or at a later attempt. Nothing was changed."""


@job
async def transfer_funds(ctx: JobContext, source: int, target: int, amount: Decimal) -> Decimal:
    """Move money from one account to another. Returns the balance of the first.

    Both rows are locked in the order of their ids, so that two transfers in opposite directions cannot deadlock. The
    balance is checked under the lock, so that two transfers cannot both pass.
    """
    if amount <= 0 or amount != round(amount, 2):
        raise TransferRefused(f"amount {amount}: a positive number with two decimals, please")
    if source == target:
        raise TransferRefused(f"account {source}: source and target are the same")
    async with ctx.transaction() as session:
        both = select(Account).where(Account.id.in_([source, target])).order_by(Account.id)
        accounts = {account.id: account for account in await session.scalars(both.with_for_update())}
        missing = {source, target} - accounts.keys()
        if missing:
            raise TransferRefused(f"there is no account {', '.join(map(str, sorted(missing)))}")
        if accounts[source].balance < amount:
            raise TransferRefused(f"account {source} has {accounts[source].balance}, not {amount}")
        accounts[source].balance -= amount
        accounts[target].balance += amount
        return accounts[source].balance
