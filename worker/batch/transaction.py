"""The transaction of one batch, on the run's own connection.

It is the driver's alone until the job asks for a session: rows that need no object, and bulk operations, pay for no
unit of work. Both are in the same transaction, in whatever order they are used.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

from worker.batch.bulk_flush import flush_changes
from worker.cancellation import run_to_completion
from worker.db.driver import Driver
from worker.db.engine import Database
from worker.db.sessions import ScopedSession, roll_back
from worker.errors import LonghaulError
from worker.ledger import OwnedRun


class Writer(Protocol):
    """Where a bulk operation writes to: a session, and the driver in the same transaction."""

    @property
    def session(self) -> ScopedSession:
        """The session."""

    async def driver(self) -> Any:
        """Return asyncpg's connection in the transaction, after what the session has pending."""


class SessionWriter:
    """A session's transaction, of which its scope takes care."""

    def __init__(self, session: ScopedSession) -> None:
        self.session = session

    async def driver(self) -> Any:
        """Return asyncpg's connection in the transaction, after what the session has pending."""
        await self.session.flush()
        return await (await Driver.from_connection(await self.session.connection())).begin()


@asynccontextmanager
async def driver_transaction(database: Database) -> AsyncIterator[Any]:
    """Open a connection in a transaction of the driver alone: asyncpg's connection, committed at the end.

    For a bulk operation outside of a batch: without a session, which it has no use for.
    """
    connection = await database.engine.connect()
    try:
        driver = await Driver.from_connection(connection)
        try:
            yield await driver.begin()
        except BaseException:
            await run_to_completion(roll_back(driver.rollback()))
            raise
        await run_to_completion(driver.commit())
    finally:
        await run_to_completion(connection.close())


class DriverWriter:
    """A transaction of the driver alone."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    @property
    def session(self) -> ScopedSession:
        """There is none."""
        raise LonghaulError("this transaction is the driver's alone")

    async def driver(self) -> Any:
        """Return asyncpg's connection in the transaction."""
        return self._raw


class BatchTransaction:
    """One batch's transaction.

    Args:
        run: whose connection it is on.
    """

    def __init__(self, run: OwnedRun) -> None:
        self._run = run
        self._driver = run.driver
        self._session: ScopedSession | None = None

    @property
    def session(self) -> ScopedSession:
        """The session of this transaction, made at the first use."""
        if self._session is None:
            self._session = self._run.session("a batch")
        return self._session

    @property
    def is_open(self) -> bool:
        """Whether the transaction has begun."""
        return self._driver.in_transaction

    @property
    def keeps_prepared(self) -> bool:
        """Whether what is prepared here can be executed in the next batch, too."""
        return not self._driver.pooled

    async def driver(self) -> Any:
        """Return asyncpg's connection in the transaction, after what the session has pending."""
        await self.flush()
        return await self._driver.begin()

    async def flush(self) -> None:
        """Send what the session has pending."""
        session = self._session
        if session is None:
            return
        if session.sync_session._is_clean():
            return
        await session.connection()  # the transaction is the session's, too
        await flush_changes(session.sync_session, await self._driver.begin())
        await session.flush()

    async def end_read(self) -> None:
        """End what has only read; objects stay, and the next statement begins another transaction."""
        if self._session is not None:
            await self._session.end_read()
        await run_to_completion(self._driver.commit())

    async def commit(self, checkpoint: str, *, begin: bool) -> None:
        """Write the checkpoint and commit, in one message where no session takes part; close the session.

        Args:
            checkpoint: a statement without parameters.
            begin: whether the next batch's transaction may begin in the same message.
        """
        await self.driver()
        await run_to_completion(self._commit(checkpoint, begin))

    async def roll_back(self) -> None:
        """Roll back, and close the session."""
        await run_to_completion(self._roll_back())

    async def _commit(self, checkpoint: str, begin: bool) -> None:
        if self._session is None:
            await self._driver.commit_after(checkpoint, begin=begin)
            return
        await self._driver.raw.execute(checkpoint)
        session, self._session = self._session, None
        await session.end(commit=True)
        await self._driver.commit()  # a session that sent nothing has no transaction to commit

    async def _roll_back(self) -> None:
        session, self._session = self._session, None
        try:
            if session is not None:
                await session.end(commit=False)
        finally:
            await roll_back(self._driver.rollback())
