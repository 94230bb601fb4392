"""The driver beneath SQLAlchemy: asyncpg's own connection, in the same transaction.

SQLAlchemy's dialect sends BEGIN with its first own statement, and COMMIT only for a transaction that it has begun. What
goes to the driver directly (COPY, arrays, rows that need no object) would be outside of it. So BEGIN, COMMIT and
ROLLBACK go through the dialect's adapter here, which both sides look at. The adapter is private to SQLAlchemy: its
version is pinned, and tests/db/test_driver.py holds what is used of it.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from worker.db.literal import TextStatement


class Driver:
    """asyncpg's connection beneath a connection of SQLAlchemy.

    Attributes:
        raw: the `asyncpg.Connection`.
    """

    __slots__ = ("_adapter", "raw")

    def __init__(self, adapter: Any, raw: Any) -> None:
        self._adapter = adapter
        self.raw = raw

    @classmethod
    async def beneath(cls, connection: AsyncConnection) -> Driver:
        """Return the driver of a connection that is checked out."""
        proxied = await connection.get_raw_connection()
        return cls(proxied.dbapi_connection, proxied.driver_connection)

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction was begun, here or by SQLAlchemy, and has not ended."""
        return self._adapter._transaction is not None

    async def begin(self) -> Any:
        """Send BEGIN unless that was done. Returns asyncpg's connection, in the transaction."""
        if self._adapter._transaction is None:
            await self._adapter._start_transaction()
        return self.raw

    async def commit(self) -> None:
        """Send COMMIT, if a transaction is open. SQLAlchemy must have none of its own."""
        transaction = self._adapter._transaction
        if transaction is not None:
            await self._adapter._call_and_discard(transaction.commit)

    async def prepare(self, connection: AsyncConnection, statement: TextStatement) -> None:
        """Make a statement known to the session, once in the life of its connection."""
        info: dict[str, Any] = connection.sync_connection.info if connection.sync_connection else {}
        known: set[str] = info.setdefault("prepared", set())
        if statement.name not in known:
            await self.raw.execute(statement.prepare)
            known.add(statement.name)

    async def commit_after(self, statement: str, *, begin: bool) -> None:
        """Send a statement and COMMIT in one message; where the statement fails, the transaction stays open.

        Args:
            statement: without parameters.
            begin: whether the next transaction begins in the same message.
        """
        if begin:
            level = self._adapter.isolation_level
            begin_ = f"BEGIN ISOLATION LEVEL {level.replace('_', ' ').upper()}" if level else "BEGIN"
            await self.raw.execute(f"{statement}; COMMIT; {begin_}")
            return  # one transaction for another: neither SQLAlchemy nor asyncpg has to know
        await self.raw.execute(f"{statement}; COMMIT")
        self._adapter._transaction = None
        self.raw._top_xact = None  # asyncpg's own note of an open transaction

    async def rollback(self) -> None:
        """Send ROLLBACK, if a transaction is open. SQLAlchemy must have none of its own."""
        transaction = self._adapter._transaction
        if transaction is not None:
            await self._adapter._call_and_discard(transaction.rollback)
