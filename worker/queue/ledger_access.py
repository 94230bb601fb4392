"""Opens the ledger for a client or a command. Clients load this module when they first need the database."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from worker.db.engine import Database, unavailable
from worker.db.errors import is_unavailable, sqlstate
from worker.errors import DatabaseNotMigrated, InvalidArguments, UsageError, format_error
from worker.ledger import Ledger
from worker.queue.home_loop import HomeLoop
from worker.queue.run_reader import RunReader
from worker.settings import Settings

T = TypeVar("T")

_UNDEFINED_TABLE = ("42P01", "3F000")
#: SQLSTATEs of a value that PostgreSQL, or its driver, cannot take: of a wrong type, NUL, a number out of range, or a
#: negative limit.
_ODD_VALUE = ("22000", "22003", "22021", "22P05", "2201W")
_REFUSED = ("28", "3D")  # SQLSTATE classes: invalid authorization, invalid catalog name
_POOL = {"pool_size": 1, "max_overflow": 2}


class LedgerAccess:
    """The ledger of a client. Its database is opened at the first use.

    Args:
        settings: the settings of the database.
        database: an open database to use, which stays open.
    """

    def __init__(self, settings: Settings, database: Database | None = None) -> None:
        self._settings = settings
        self._database = database
        self._owns = database is None
        self._home = HomeLoop()

    async def use(self, operation: Callable[[Ledger], Awaitable[T]]) -> T:
        """Run an operation on the ledger.

        Raises:
            DatabaseNotMigrated: the database has no ledger.
            InvalidArguments: PostgreSQL has no form for a name or a value.
            ServerUnavailable: PostgreSQL does not answer.
        """
        if self._owns and self._home.moves(self._database):
            self._database = None
        if self._database is None:
            self._database = open_database(self._settings, "client")
        try:
            return await operation(Ledger(self._database))
        except (SQLAlchemyError, OSError) as error:
            explained = explain(error, self._settings)
            if explained is error:
                raise
            raise explained from error

    async def close(self) -> None:
        """Close the database, unless it was passed."""
        if not self._owns:
            return
        is_gone = self._home.moves(self._database)
        database, self._database = self._database, None
        if database is not None and not is_gone:
            await database.close()


def run_with_ledger(settings: Settings, reader: RunReader, operation: Callable[[Ledger], Awaitable[T]]) -> T:
    """Run an operation on the ledger in a caller without an event loop: over a connection of its own, in an event loop
    of this thread, both of which end with the operation.

    Args:
        settings: the settings of the database.
        reader: a blocking connection to Redis.
        operation: the operation.

    Raises:
        UsageError: this thread runs an event loop.
    """

    async def run() -> T:
        access = LedgerAccess(settings)
        try:
            return await reader.command(access.use(operation))
        finally:
            await access.close()

    return run_in_own_loop(run)


def run_in_own_loop(run: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine function in an event loop of this thread, which ends with it.

    Raises:
        UsageError: this thread runs an event loop.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(run())
    raise UsageError("SyncClient cannot use the database where an event loop runs: use `Client` there, and await it")


def open_database(settings: Settings, name: str) -> Database:
    """Return a database with a small pool.

    Args:
        settings: the settings of the database.
        name: part of the `application_name` of its connections.
    """
    small = settings.model_copy(update={"database": settings.database.model_copy(update=_POOL)})
    return Database(small, name)


def explain(error: SQLAlchemyError | OSError, settings: Settings) -> Exception:
    """Return a database error as an error for operators, or the error itself if there is no explanation."""
    if sqlstate(error) in _UNDEFINED_TABLE:
        return DatabaseNotMigrated("the database has no ledger: run `worker migrate`")
    if sqlstate(error) in _ODD_VALUE:
        return InvalidArguments(f"PostgreSQL does not take a value: {format_error(error)}")
    if is_unavailable(error) or isinstance(error, OSError) or (sqlstate(error) or "").startswith(_REFUSED):
        return unavailable(error, settings)
    return error
