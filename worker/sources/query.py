"""`Query`: the rows of a select on another PostgreSQL database."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, cast

from asyncpg import PostgresError
from sqlalchemy import Select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.batch.catalog import sql_text
from worker.batch.fingerprint import select_fingerprint
from worker.batch.source import Bounds, OpenStep, Page
from worker.batch.stream import StreamSource
from worker.batch.transaction import BatchTransaction
from worker.cancellation import run_to_completion
from worker.db.driver import Driver
from worker.db.engine import Database
from worker.errors import SourceUnavailable, UnsupportedStatement, UsageError, format_error


class Query:
    """The rows of a select on another database: `ctx.walk(Query(select(Old).order_by(Old.id), database="legacy"))`.

    The rows are read there through one server-side cursor, in one snapshot. The job writes here, and the cursor is
    committed here. If the result is ordered by a unique, not-null key, a restart continues behind the last committed
    row, in a new snapshot.

    Args:
        statement: Any `select()`.
        database: The name of the database: NAME of `[databases.NAME]` in the settings.
        replica: Whether to read at its `replica_url`, once the replica has everything that was committed before this
            attempt of the walk began.
        on_restart: "start_over" accepts a result that has no key to continue behind.

    Raises:
        UsageError: The settings do not have the database.
        SourceUnavailable: The database cannot be reached.
        UnsupportedStatement: The result has no key to continue behind, and `on_restart` does not allow that.
    """

    kind = "query"

    def __init__(
        self,
        statement: Select[Any],
        database: str,
        *,
        replica: bool = False,
        on_restart: Literal["start_over"] | None = None,
    ) -> None:
        if not isinstance(statement, Select):
            raise UnsupportedStatement(f"Query takes a select(), not {type(statement).__name__}")
        self._statement = statement
        self._name = database
        self._replica = replica
        self._on_restart = on_restart
        self.text = f"{database}: {sql_text(statement)}"
        self.fingerprint = f"{database}: {select_fingerprint(statement)}"
        self._database: Database | None = None
        self._connection: AsyncConnection | None = None
        self._rows: StreamSource

    async def open(self, step: OpenStep) -> Bounds:
        """Connect to the database, and choose the key behind which a restart continues."""
        settings = step.settings
        there = settings.databases.get(self._name)
        if there is None:
            known = ", ".join(sorted(settings.databases)) or "none"
            raise UsageError(
                f"Query: the settings have no database {self._name!r} (they have: {known}). Add "
                f"[databases.{self._name}] with its url to settings.toml"
            )
        self._database = Database(settings.model_copy(update={"database": there}))
        try:
            self._connection = await self._database.engine.connect()
        except (OSError, SQLAlchemyError, PostgresError) as error:
            raise SourceUnavailable(
                f"the database {self._name!r} cannot be reached: {format_error(error)}. Check its url in "
                f"[databases.{self._name}] of the settings. The run continues with its next attempt"
            ) from error
        self._rows = StreamSource(
            self._statement,
            self._database,
            on_restart=self._on_restart,
            replica=self._replica,
            max_snapshot_seconds=settings.batch.max_snapshot_seconds,
            # The stream limits the lock waits of its writer if there is no limit. Here, the writer is elsewhere.
            lock_timeout_seconds=there.lock_timeout_seconds or 1,
        )
        try:
            bounds = await self._rows.open(replace(step, connection=self._connection))
        except UnsupportedStatement as error:
            raise UnsupportedStatement(f"the database {self._name!r}: {error}") from None
        await run_to_completion(self._connection.rollback())
        return replace(bounds, table="")  # the throttles look at this database

    async def fetch(self, transaction: BatchTransaction, cursor: Any, size: int) -> Page[Any] | None:
        """Return the next rows from there."""
        assert self._connection is not None  # noqa: S101
        return await self._rows.fetch(cast(BatchTransaction, _There(self._connection)), cursor, size)

    async def close(self) -> None:
        """Close the connections."""
        database, self._database = self._database, None
        if database is None:
            return
        try:
            if hasattr(self, "_rows"):
                await self._rows.close()
            if self._connection is not None:
                await run_to_completion(self._connection.close())
        finally:
            await run_to_completion(database.close())


class _There:
    """The part of a batch's transaction that a stream uses to ask a primary for its position, on the other database."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def driver(self) -> Any:
        return (await Driver.from_connection(self._connection)).raw

    async def end_read(self) -> None:
        await run_to_completion(self._connection.rollback())
