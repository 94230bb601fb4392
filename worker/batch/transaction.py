"""The transaction of one batch, on the run's own connection.

No Session is created until the job asks for one, so batches of plain rows and bulk operations avoid the cost of the
unit of work. Session and driver share the transaction, in whatever order they are used.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from worker.batch.bulk_flush import flush_changes
from worker.cancellation import run_to_completion
from worker.db.driver import Driver
from worker.db.engine import Database
from worker.db.sessions import ScopedSession, roll_back
from worker.errors import UsageError
from worker.ledger import OwnedRun


class BulkTransaction:
    """The transaction of one bulk operation outside of a batch.

    Attributes:
        connection: SQLAlchemy's connection, which no other operation uses.
    """

    def __init__(self, connection: AsyncConnection, driver: Driver) -> None:
        self.connection = connection
        self._driver = driver

    @property
    def session(self) -> ScopedSession:
        """A new session in this transaction."""
        session = ScopedSession(bind=self.connection, expire_on_commit=False, close_resets_only=False)
        session.bind_to_scope("a bulk operation")
        return session

    async def driver(self) -> Any:
        """Return asyncpg's connection, in the transaction."""
        return await self._driver.begin()


@asynccontextmanager
async def bulk_transaction(database: Database) -> AsyncIterator[BulkTransaction]:
    """Open a transaction for a bulk operation: committed at the end, rolled back if the block raises."""
    connection = await database.engine.connect()
    try:
        driver = await Driver.from_connection(connection)
        try:
            yield BulkTransaction(connection, driver)
        except BaseException:
            await run_to_completion(roll_back(connection.rollback()))
            await run_to_completion(roll_back(driver.rollback()))
            raise
        await run_to_completion(connection.commit())
        await run_to_completion(driver.commit())
    finally:
        await run_to_completion(connection.close())


class BatchTransaction:
    """The transaction of one batch.

    Args:
        run: The run, whose connection the transaction uses.
        name: The batch, for errors.
        scope: What ends its session, for errors.
    """

    def __init__(self, run: OwnedRun, name: str, *, scope: str = "a batch") -> None:
        self._run = run
        self._driver = run.driver
        self._session: ScopedSession | None = None
        self._name = name
        self._scope = scope
        self._is_over = False
        self._is_used = False  # the commit of the batch before may have begun the transaction

    @property
    def connection(self) -> AsyncConnection:
        """SQLAlchemy's connection."""
        return self._run.connection

    @property
    def session(self) -> ScopedSession:
        """The session of this transaction, created at the first use.

        Raises:
            UsageError: The batch was committed or rolled back.
        """
        self._ensure_open()
        self._is_used = True
        if self._session is None:
            self._session = self._run.session(self._scope)
        return self._session

    @property
    def is_open(self) -> bool:
        """Whether a statement of this batch has begun the transaction, and it has not ended."""
        return self._is_used and not self._is_over and self._driver.in_transaction

    @property
    def keeps_prepared(self) -> bool:
        """Whether a statement that is prepared here can be executed in the next batch."""
        return not self._driver.pooled

    async def driver(self) -> Any:
        """Return asyncpg's connection in the transaction, after a flush of the session.

        Raises:
            UsageError: The batch was committed or rolled back.
        """
        self._ensure_open()
        self._is_used = True
        await self.flush()
        return await self._driver.begin()

    def _ensure_open(self) -> None:
        if self._is_over:
            raise UsageError(
                f"{self._name} is over: writes through it would be in no transaction. Write inside the loop's body, or "
                f"after the loop with ctx.transaction() or ctx.bulk"
            )

    async def flush(self) -> None:
        """Send the session's pending work: changed objects, and an opened savepoint."""
        session = self._session
        if session is None:
            return
        pending = session.sync_session
        if pending.in_nested_transaction():
            # SQLAlchemy sends SAVEPOINT only before its own next statement: send it now for the driver's statements.
            await session.connection()
        if not (pending.new or pending.deleted or pending.identity_map.check_modified()):
            return
        await session.connection()  # the transaction is the session's, too
        await flush_changes(pending, self.connection, await self._driver.begin())
        await session.flush()

    async def end_read(self) -> None:
        """End a transaction that has only read; objects stay, and the next statement begins another transaction."""
        if self._session is not None:
            await self._session.end_read()
        await run_to_completion(self._driver.commit())

    async def commit(self, checkpoint: Callable[[Any], Coroutine[Any, Any, None]], *, begin_next: bool = False) -> None:
        """Write the checkpoint, commit, and close the session.

        Args:
            checkpoint: Takes asyncpg's connection, and moves the cursor in this transaction.
            begin_next: Whether the transaction of the next batch may begin in the statement that commits this one.
        """
        if self._session is None and not self._driver.in_transaction and not self._driver.pooled:
            # The batch has written nothing here: the checkpoint is the whole transaction.
            self._is_over = True
            await run_to_completion(checkpoint(self._driver.raw))
            return
        raw = await self.driver()
        self.ensure_not_ended()
        await checkpoint(raw)
        self._is_over = True
        await run_to_completion(self._commit(begin_next))

    def ensure_not_ended(self) -> None:
        """Raise `UsageError` if a statement of the body has ended the transaction."""
        if self._driver.was_ended:
            raise UsageError(
                f"{self._name}: a statement such as COMMIT or ROLLBACK has ended its transaction, so that its writes "
                f"are no longer committed together with its record: {self._scope} commits once, at its end; raise to "
                f"roll it back, or use a savepoint for a part of it"
            )

    async def roll_back(self) -> None:
        """Roll back, and close the session."""
        self._is_over = True
        await run_to_completion(self._roll_back())

    async def _commit(self, begin_next: bool) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.end(commit=True)
            await self._driver.commit()  # no effect if the session has committed it already
        elif begin_next:
            await self._driver.commit_and_begin()
        else:
            await self._driver.commit()

    async def _roll_back(self) -> None:
        session, self._session = self._session, None
        try:
            if session is not None:
                await session.end(commit=False)
        finally:
            await roll_back(self._driver.rollback())
