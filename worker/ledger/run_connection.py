"""The connection that a run keeps from its first durable loop to its end."""

from __future__ import annotations

import logging

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.cancellation import run_to_completion
from worker.db.driver import Driver
from worker.db.sessions import ScopedSession, roll_back
from worker.errors import LonghaulError
from worker.ledger.queries import query

logger = logging.getLogger("longhaul.ledger")


class RunConnection:
    """A connection of the pool and the asyncpg connection below it.

    Args:
        run_id: Id of the run, for errors.
        connection: A connection of the pool.
    """

    def __init__(self, run_id: str, connection: AsyncConnection) -> None:
        self._run_id = run_id
        self._connection: AsyncConnection | None = connection
        self._driver: Driver | None = None
        self._pid: int | None = None

    async def attach_driver(self) -> Driver:
        """Open the driver below the connection. The connection has no transaction."""
        self._driver = await Driver.from_connection(self.connection)
        self._pid = self._driver.raw.get_server_pid()
        return self._driver

    @property
    def connection(self) -> AsyncConnection:
        """The SQLAlchemy connection."""
        if self._connection is None:
            raise LonghaulError(f"run {self._run_id} has ended: its loops can no longer be used")
        return self._connection

    @property
    def driver(self) -> Driver:
        """The driver below the connection."""
        if self._driver is None:
            raise LonghaulError(f"run {self._run_id} has ended: its loops can no longer be used")
        return self._driver

    def session(self, scope: str) -> ScopedSession:
        """Return a new session on this connection. The loop that asked for it ends it."""
        session = ScopedSession(bind=self.connection, expire_on_commit=False, close_resets_only=False)
        session.bind_to_scope(scope)
        return session

    @property
    def pid(self) -> int | None:
        """The process id of the connection's session, also after the connection was lost."""
        return self._pid

    @property
    def is_lost(self) -> bool:
        """Whether the connection has ended on this side; the server may not know, and keep its locks."""
        return self._driver is not None and bool(self._driver.raw.is_closed())

    async def roll_back(self) -> None:
        """Roll back the transaction of the driver, if one is open."""
        if self._driver is not None:
            await run_to_completion(roll_back(self._driver.rollback()))

    async def close(self, *, discard: bool = False) -> None:
        """Return the connection to the pool, and roll back its transaction. Closing twice has no effect.

        Args:
            discard: Close the connection instead, because abandoned code may still use it.
        """
        connection, self._connection = self._connection, None
        driver, self._driver = self._driver, None
        if connection is None:
            return
        if discard or (driver is not None and (driver.raw.is_closed() or driver.raw.is_in_transaction())):
            # Lost, or still in use by a task that the job has not awaited: the pool must not hand it out again.
            await run_to_completion(connection.invalidate())
        elif connection.in_transaction():
            await run_to_completion(roll_back(connection.rollback()))
        await run_to_completion(connection.close())


async def terminate_backend(connection: AsyncConnection, run_id: str, pid: int | None, started: object) -> None:
    """Terminate the former owner's backend. A role that may not do so relies on the idle timeout."""
    if await end_session(connection, pid, started):
        logger.warning("terminated the former owner's connection run=%s pid=%s", run_id, pid)


async def end_session(connection: AsyncConnection, pid: int | None, started: object) -> bool:
    """End a session of the server. Return whether it was there, and this role may end it.

    Args:
        connection: Another connection of the same database.
        pid: Process id of the session.
        started: When the session began, since a later one may have its process id.
    """
    try:
        async with connection.begin_nested():
            return bool(await connection.scalar(query("terminate_backend"), {"pid": pid, "started": started}))
    except DBAPIError as error:
        logger.warning("cannot terminate a connection pid=%s: %s", pid, error.orig)
        return False
