"""The driver beneath SQLAlchemy: asyncpg's own connection, in the same transaction.

SQLAlchemy's dialect sends BEGIN before its own first statement, and COMMIT only for a transaction that it has begun.
Statements that go to the driver directly (COPY, arrays, rows that need no object) would run outside of that
transaction. `Driver` therefore begins and ends transactions through the dialect's adapter, whose state both sides read.

This module and `worker.db.watched` are the only ones that use private parts of asyncpg and of SQLAlchemy's adapter for
it. `check_private_names` runs when this module is imported, and tests/db test the behaviour of each of them.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg
import sqlalchemy
from sqlalchemy.dialects.postgresql.asyncpg import AsyncAdapt_asyncpg_connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
from sqlalchemy.util.concurrency import greenlet_spawn

from worker.cancellation import run_to_completion
from worker.db.sessions import AUTOCOMMIT, roll_back
from worker.db.watched import COMMANDS, WatchedConnection
from worker.errors import UsageError

#: The versions that the tests of this module run with.
TESTED_VERSIONS = "asyncpg 0.32 and SQLAlchemy 2.1"

_ADAPTER_NAMES = ("_transaction", "_start_transaction", "autocommit")
_ASYNCPG_NAMES = ("_get_statement",)


def check_private_names() -> None:
    """Raise `ImportError` if asyncpg or SQLAlchemy no longer has a private name that this module uses.

    A missing name would not always be an error later: an override of a method that is never called changes nothing
    visible, and connections through PgBouncer would silently use named statements.
    """
    installed = f"asyncpg {asyncpg.__version__} and SQLAlchemy {sqlalchemy.__version__}"
    missing = [f"asyncpg.Connection.{name}" for name in _ASYNCPG_NAMES if not hasattr(asyncpg.Connection, name)]
    protocol = asyncpg.protocol.Protocol
    missing += [f"asyncpg.protocol.Protocol.{name}" for name in COMMANDS if not hasattr(protocol, name)]
    if "_invalidate_time" not in sqlalchemy.Pool.__annotations__:
        missing.append("sqlalchemy.Pool._invalidate_time")
    adapter = AsyncAdapt_asyncpg_connection
    missing += [f"{adapter.__name__}.{name}" for name in _ADAPTER_NAMES if not hasattr(adapter, name)]
    if not missing and "named" not in inspect.signature(asyncpg.Connection._get_statement).parameters:
        missing = ["asyncpg.Connection._get_statement(named=)"]
    if missing:
        raise ImportError(
            f"worker.db needs {', '.join(missing)}, which {installed} do not have. Install the versions that it is "
            f"tested with: {TESTED_VERSIONS}"
        )


check_private_names()


def connection_info(connection: AsyncConnection) -> dict[Any, Any]:
    """Return what SQLAlchemy keeps with a connection of its pool, for the life of the connection to the server."""
    return {} if connection.sync_connection is None else connection.sync_connection.info


def replace_pooled(engine: AsyncEngine) -> None:
    """Replace each connection of the pool when it is used next, as SQLAlchemy does after a lost connection."""
    engine.pool._invalidate_time = time.time()


def execution_options(connection: AsyncConnection) -> Mapping[str, Any]:
    """Return the execution options of a connection and of its engine."""
    return {} if connection.sync_connection is None else connection.sync_connection.get_execution_options()


def literal(value: str | int | bool | None) -> str:
    """Return a value as SQL spells it, whatever `standard_conforming_strings` says.

    Raises:
        ValueError: a NUL, for which PostgreSQL's text has no place.
    """
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if "\x00" in value:
        raise ValueError("PostgreSQL's text has no place for NUL")
    return "E'" + value.replace("\\", "\\\\").replace("'", "''") + "'"


class PooledConnection(WatchedConnection):
    """asyncpg's connection through PgBouncer in transaction mode; see `worker.db.pgbouncer`.

    Attributes:
        local_settings: returns the settings of a transaction that begins, by name.
    """

    local_settings: Callable[[], Mapping[str, str]] = dict

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        """Send a command. BEGIN is sent together with the transaction's settings."""
        if query.startswith("BEGIN") and not args:
            settings = self.local_settings().items()
            query += "".join(f";SET LOCAL {name} TO {literal(value)}" for name, value in settings)
        status: str = await super().execute(query, *args, timeout=timeout)
        return status

    async def _get_statement(self, query: str, timeout: float | None, *, named: object = False, **options: Any) -> Any:
        # Without a statement cache asyncpg names no statement but those of its own cursors.
        return await super()._get_statement(query, timeout, named="", **options)


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
        """Whether a transaction has begun, here or by SQLAlchemy, and has not ended."""
        return self._adapter._transaction is not None

    @property
    def was_ended(self) -> bool:
        """Whether a statement such as COMMIT has ended the transaction behind the back of this class."""
        return self.in_transaction and not self.raw.is_closed() and not self.raw.is_in_transaction()

    @property
    def pooled(self) -> bool:
        """Whether the connection goes through PgBouncer: session state does not last beyond the transaction."""
        return issubclass(type(self.raw), PooledConnection)  # isinstance() is True for each of asyncpg's classes

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[Any]:
        """Yield asyncpg's connection for a query that needs no transaction; through PgBouncer it gets one."""
        if not self.pooled:
            yield self.raw
            return
        try:
            yield await self.begin()
        finally:
            await run_to_completion(roll_back(self.rollback()))

    async def begin(self) -> Any:
        """Send BEGIN unless a transaction is open.

        Returns:
            asyncpg's connection, in the transaction.

        Raises:
            UsageError: The connection is in AUTOCOMMIT, in which SQLAlchemy sends no BEGIN.
        """
        if self._adapter.autocommit:
            raise UsageError(f"a connection {AUTOCOMMIT}")
        if self._adapter._transaction is None:
            with self._driver_errors():
                await self._adapter._start_transaction()
        return self.raw

    async def commit(self) -> None:
        """Send COMMIT if a transaction is open. SQLAlchemy must have no transaction of its own."""
        await self._end(self._adapter.commit)

    async def commit_and_begin(self) -> None:
        """Commit, and begin the next transaction with the same isolation, in one statement.

        Through PgBouncer only commit: the next transaction may be on another server connection. SQLAlchemy must have
        no transaction of its own. Neither side has to know: for both, a transaction is open before and after.
        """
        if self.pooled or not self.in_transaction:
            await self.commit()
        else:
            await self.raw.execute("COMMIT AND CHAIN")

    async def rollback(self) -> None:
        """Send ROLLBACK if a transaction is open. SQLAlchemy must have no transaction of its own."""
        await self._end(self._adapter.rollback)

    async def _end(self, end: Callable[[], None]) -> None:
        with self._driver_errors():
            await greenlet_spawn(end)

    @contextmanager
    def _driver_errors(self) -> Iterator[None]:
        """Raise asyncpg's own errors, as other statements of the driver do, instead of the adapter's."""
        try:
            yield
        except self._adapter.dbapi.Error as error:
            raise error.__cause__ or error from None
