"""Readers in one snapshot: a server-side cursor, and a snapshot that several hands share."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from sqlalchemy import Select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncResult, AsyncSession

from worker.batch.compiled import CompiledStatement
from worker.batch.page import Row, RowShape
from worker.batch.source import Page
from worker.cancellation import cancel_and_wait, run_to_completion
from worker.db.driver import Driver
from worker.db.errors import sqlstate
from worker.db.sessions import ScopedSession, roll_back
from worker.db.statement_internals import rewrites_statements
from worker.errors import UsageError

_BUFFER_ROWS = 1_000  # that SQLAlchemy fetches at a time if the rows are objects
#: Of SET TRANSACTION SNAPSHOT: the transaction that has exported it has ended, or the id is not one.
_NO_SNAPSHOT = ("22023", "42704", "58P01", "55000")


class SnapshotExporter:
    """A transaction whose snapshot the readers of several hands share.

    Args:
        connection: A connection of its own, which it closes.
    """

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection
        self._opened_at = time.monotonic()

    @property
    def age_seconds(self) -> float:
        """Seconds since the snapshot was taken."""
        return time.monotonic() - self._opened_at

    async def export(self) -> str:
        """Take the snapshot, and return its id."""
        try:
            await _begin_snapshot(self._connection)
            exported: str = await self._connection.scalar(text("SELECT pg_catalog.pg_export_snapshot()"))
        except BaseException:
            await self.close()
            raise
        return exported

    async def close(self) -> None:
        """End the transaction and return the connection to the pool."""
        try:
            await run_to_completion(roll_back(self._connection.rollback()))
        finally:
            await run_to_completion(self._connection.close())


async def _begin_snapshot(connection: AsyncConnection) -> None:
    await connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
    # It is idle in its transaction while the job works on a partition.
    await connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))


class SnapshotReader:
    """A server-side cursor in a REPEATABLE READ, READ ONLY transaction.

    Plain rows are read by the driver, which fetches the next partition while the job works on this one.

    Args:
        connection: A connection of its own, which it closes.
        shape: The shape of the rows.
        limit: The number of rows that its statement is limited to; None for all.
    """

    def __init__(self, connection: AsyncConnection, shape: RowShape, *, limit: int | None = None) -> None:
        self.limit = limit
        self._connection = connection
        self._shape = shape
        self._session: AsyncSession | None = None
        self._result: AsyncResult[Any] | None = None
        self._cursor: Any = None
        self._ahead: asyncio.Task[tuple[list[Row], bool]] | None = None
        self._opened_at = time.monotonic()
        self._has_begun = False
        #: Whether the last partition was read.
        self.at_end = False

    @property
    def age_seconds(self) -> float:
        """Seconds since the snapshot was taken."""
        return time.monotonic() - self._opened_at

    async def import_snapshot(self, snapshot: str) -> bool:
        """Begin the transaction in the snapshot of another one. Return False if that has ended."""
        connection = self._connection
        await _begin_snapshot(connection)
        try:
            # The id comes from the ledger: it is quoted, because the statement takes no parameters.
            await connection.exec_driver_sql(f"SET TRANSACTION SNAPSHOT {_quote(snapshot)}")
        except DBAPIError as error:
            if sqlstate(error) not in _NO_SNAPSHOT:
                raise
            await connection.rollback()
            return False
        self._has_begun = True
        return True

    async def open(self, statement: Select[Any], values: dict[str, Any]) -> None:
        """Begin the transaction and open the cursor."""
        connection = self._connection
        if not self._has_begun:
            await _begin_snapshot(connection)
        if self._shape.may_be_plain and not rewrites_statements(connection):
            plain = CompiledStatement(statement, connection.dialect)
            sql, arguments = plain.bind(values)
            raw = (await Driver.from_connection(connection)).raw
            prepared = await raw.prepare(sql, record_class=self._shape.row_class)
            if self._shape.fits(prepared.get_attributes(), connection.dialect):
                self._cursor = await prepared.cursor(*arguments)
                return
        self._session = ScopedSession(bind=connection, expire_on_commit=False, autoflush=False)
        options = {"yield_per": _BUFFER_ROWS}
        self._result = await self._session.stream(statement, values, execution_options=options)

    async def next_page(self, size: int) -> Page[Any]:
        """Return the next partition of about `size` rows; a page without rows at the end."""
        if self._cursor is None:
            assert self._result is not None  # noqa: S101
            found = await self._result.fetchmany(size)
            self.at_end = len(found) < size
            return self._shape.page(found)
        begun, self._ahead = self._ahead, None
        found, self.at_end = await (begun if begun is not None else self._fetch(size))
        if not self.at_end:
            self._ahead = asyncio.ensure_future(self._fetch(size))
        return self._shape.page(found)

    async def _fetch(self, size: int) -> tuple[list[Row], bool]:
        found: list[Row] = await self._cursor.fetch(size)
        return found, len(found) < size

    def check_unchanged(self) -> None:
        """Raise `UsageError` if the job has changed an object of the snapshot: the change would never be written."""
        if self._session is not None and self._session.dirty:
            changed = type(next(iter(self._session.dirty))).__name__
            raise UsageError(
                f"stream: {changed} objects of a stream were changed, but its reader is read-only: write with "
                f"partition.bulk.update(...), or walk the table with ctx.chunks"
            )

    async def close(self) -> None:
        """End the transaction and return the connection to the pool."""
        ahead, self._ahead = self._ahead, None
        if ahead is not None:
            await run_to_completion(cancel_and_wait(ahead))
        try:
            if self._session is not None:
                await run_to_completion(roll_back(self._session.close()))
            await run_to_completion(roll_back(self._connection.rollback()))
        finally:
            await run_to_completion(self._connection.close())


def _quote(literal: str) -> str:
    return "'" + literal.replace("'", "''") + "'"
