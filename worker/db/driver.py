"""The driver beneath SQLAlchemy: asyncpg's own connection, in the same transaction.

SQLAlchemy's dialect sends BEGIN with its first own statement, and COMMIT only for a transaction that it has begun. What
goes to the driver directly (COPY, arrays, rows that need no object) would be outside of it. So BEGIN, COMMIT and
ROLLBACK go through the dialect's adapter here, which both sides look at. The adapter is private to SQLAlchemy: its
version is pinned, and tests/db/test_driver.py holds what is used of it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from asyncpg.exceptions import DuplicatePreparedStatementError
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.cancellation import run_to_completion
from worker.db.pgbouncer import PooledConnection
from worker.db.sessions import AUTOCOMMIT, roll_back
from worker.db.simple_query import TextStatement, Value
from worker.errors import UsageError


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
    async def from_connection(cls, connection: AsyncConnection) -> Driver:
        """Return the driver of a connection that is checked out."""
        proxied = await connection.get_raw_connection()
        return cls(proxied.dbapi_connection, proxied.driver_connection)

    @property
    def in_transaction(self) -> bool:
        """Whether a transaction was begun, here or by SQLAlchemy, and has not ended."""
        return self._adapter._transaction is not None

    @property
    def pooled(self) -> bool:
        """Whether PgBouncer stands between: nothing of the session is there any more in the next transaction."""
        return issubclass(type(self.raw), PooledConnection)  # isinstance() is True for each of asyncpg's classes

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Any]:
        """Hand asyncpg's connection out for a look that needs no transaction; behind PgBouncer it has one."""
        if not self.pooled:
            yield self.raw
            return
        try:
            yield await self.begin()
        finally:
            await run_to_completion(roll_back(self.rollback()))

    async def begin(self) -> Any:
        """Send BEGIN unless that was done. Returns asyncpg's connection, in the transaction.

        Raises:
            UsageError: the connection is in AUTOCOMMIT, and would send none.
        """
        if self._adapter.autocommit:
            raise UsageError(f"a connection {AUTOCOMMIT}")
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
        if statement.name not in known and not self.pooled:
            # A call before this one may have been cancelled when the server had done it.
            with suppress(DuplicatePreparedStatementError):
                await self.raw.execute(statement.prepare)
            known.add(statement.name)

    def text_of(self, statement: TextStatement, values: Sequence[Value]) -> str:
        """Return the text that executes a statement in this session, which knows it if it can (see `prepare`)."""
        return statement.inline(values) if self.pooled else statement.execute(values)

    async def commit_after(self, statement: str, *, begin: bool) -> None:
        """Send a statement and COMMIT in one message; where the statement fails, the transaction stays open.

        Args:
            statement: without parameters.
            begin: whether the next transaction may begin in the same message. Behind PgBouncer it does not: it may
                be in another session.
        """
        if begin and not self.pooled:
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
