"""The engine of a process and the scopes of work on it, made from the settings."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from asyncpg.exceptions import (
    InvalidAuthorizationSpecificationError,
    InvalidCatalogNameError,
    PostgresError,
)
from sqlalchemy import Engine, event, text
from sqlalchemy.engine import ExceptionContext, make_url
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, async_sessionmaker, create_async_engine
from sqlalchemy.pool import QueuePool

from worker.cancellation import run_to_completion
from worker.db.calendar_ends import use_exact_dates
from worker.db.driver import replace_pooled
from worker.db.errors import is_read_only
from worker.db.liveness import LivenessChecker
from worker.db.pgbouncer import PoolerDetector
from worker.db.sessions import (
    AUTOCOMMIT,
    ScopedSession,
    is_autocommit,
    savepoint_scope,
    session_scope,
    transaction_scope,
)
from worker.db.tls import take_tls
from worker.db.watched import WatchedConnection, server_tcp_settings
from worker.errors import ServerUnavailable, UsageError
from worker.settings import Settings, mask_passwords

_NAME_BYTES = 63  # PostgreSQL cuts application_name at NAMEDATALEN - 1


class Database:
    """The engine of this process and the scopes of work on it.

    Args:
        settings: for URL, pool and timeouts.
        worker_name: part of `application_name`, which pg_stat_activity shows.
        job_name: returns the name of the job that runs in the current context, or "". It ends `application_name` on
            the connections that the job uses.
        read_only: whether every transaction is READ ONLY, so that PostgreSQL refuses each write.

    Attributes:
        replica: the database of `database.replica_url`; None where there is none.
    """

    def __init__(
        self,
        settings: Settings,
        worker_name: str = "",
        *,
        job_name: Callable[[], str] = str,
        read_only: bool = False,
    ) -> None:
        self.settings = settings
        self._base_name = ":".join(part for part in (settings.database.application_name, worker_name) if part)
        self._job_name = job_name
        self._checker = LivenessChecker(settings.database, lambda: self.pooled)
        self._route = PoolerDetector(
            settings.database.pgbouncer,
            lambda: _session_settings(settings, self._application_name(), "transaction_read_only" if read_only else ""),
            bind=self._checker.bind,
            seconds=settings.database.connect_timeout_seconds,
        )
        session = _session_settings(settings, self._base_name, "default_transaction_read_only" if read_only else "")
        self.engine = _make_engine(settings, session, self._route, self._checker)
        event.listen(self.engine.sync_engine, "checkout", self._name_connection)
        event.listen(self.engine.sync_engine, "handle_error", self._note_read_only)
        self.replica: Database | None = None
        if settings.database.replica_url is not None:
            there = {"url": settings.database.replica_url, "replica_url": None}
            of_replica = settings.database.model_copy(update=there)
            replica_settings = settings.model_copy(update={"database": of_replica})
            self.replica = Database(replica_settings, worker_name, job_name=job_name, read_only=read_only)
        self.sessions: async_sessionmaker[ScopedSession] = async_sessionmaker(
            self.engine, class_=ScopedSession, expire_on_commit=False, close_resets_only=False
        )

    @property
    def pooled(self) -> bool:
        """Whether connections go through PgBouncer, so that a session of the server is ours for one transaction only.

        Detected on the first connection if `database.pgbouncer` is "auto".
        """
        return bool(self._route.pooled)

    def session(self) -> AbstractAsyncContextManager[ScopedSession]:
        """Open a session that may commit at any time.

        An open transaction is committed at the end, or rolled back if the block raises.
        """
        return session_scope(self.sessions)

    def transaction(self) -> AbstractAsyncContextManager[ScopedSession]:
        """Open a session in one transaction: committed at the end, rolled back if the block raises."""
        return transaction_scope(self.sessions)

    savepoint = staticmethod(savepoint_scope)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection of the pool in one transaction, for the worker's own statements."""
        connection = await self.engine.connect()
        try:
            yield connection
            await run_to_completion(connection.commit())
        finally:
            await run_to_completion(connection.close())

    async def check(self) -> None:
        """Raise `ServerUnavailable`, with the reason and the cure, if the database does not answer."""
        try:
            async with self.connection() as connection:
                await connection.execute(text("SELECT 1"))
        except (SQLAlchemyError, PostgresError, OSError, TimeoutError, ValueError) as error:
            raise unavailable(error, self.settings) from error

    async def accepts_writes(self, *, replace: bool = False) -> bool:
        """Return whether PostgreSQL accepts a new connection, and writes on it.

        The connections of the pool may lead to another server.

        Args:
            replace: whether to replace the pool's connections in any case: they may have been opened before a failover.
        """
        accepted = await self._checker.accepts_writes()
        if replace or not accepted:
            replace_pooled(self.engine)
        return accepted

    @property
    def connections_in_use(self) -> int:
        """Connections of the pool that are checked out."""
        pool = self.engine.sync_engine.pool
        return pool.checkedout() if isinstance(pool, QueuePool) else 0

    async def close(self) -> None:
        """Close every connection of the pool, and of the replica's."""
        await self.engine.dispose()
        self._checker.close()
        if self.replica is not None:
            await self.replica.close()

    def _application_name(self) -> str:
        return ":".join(part for part in (self._base_name, self._job_name()) if part)

    def _note_read_only(self, context: ExceptionContext) -> None:
        # A session keeps default_transaction_read_only as it was when it began, and leads to the server of that time.
        if is_read_only(context.original_exception):
            replace_pooled(self.engine)

    def _name_connection(self, dbapi_connection: Any, record: Any, proxy: Any) -> None:
        # Outside of a transaction, and only if another job had the connection before.
        job = self._job_name()
        if record.info.get("job", "") != job and not self.pooled:
            name = _cut(self._application_name())
            dbapi_connection.run_async(
                lambda raw: raw.execute("SELECT pg_catalog.set_config('application_name', $1, false)", name)
            )
            record.info["job"] = job


def unavailable(error: BaseException, settings: Settings) -> ServerUnavailable:
    """Return the error that tells an operator the reason and the cure."""
    url = mask_passwords(settings.database.url)
    cause: BaseException = error
    while isinstance(cause, DBAPIError) and (cause.__cause__ or cause.orig):
        cause = cause.__cause__ or cause.orig or cause
    while cause.__cause__ is not None and not isinstance(cause, PostgresError):
        cause = cause.__cause__
    if isinstance(cause, InvalidAuthorizationSpecificationError):
        advice = "check user and password in database.url"
    elif isinstance(cause, InvalidCatalogNameError):
        advice = "create the database, or correct database.url"
    elif "unsupported startup parameter" in str(cause):
        advice = "that is PgBouncer: leave database.pgbouncer at auto, or set it to true"
    elif "statement pooling mode" in str(cause):
        advice = "set pool_mode = transaction in PgBouncer"
    else:
        advice = "start PostgreSQL there, or set DATABASE_URL"
    return ServerUnavailable(f"PostgreSQL at {url}: {cause or type(cause).__name__}: {advice}")


def _make_engine(
    settings: Settings, session: Mapping[str, str], route: PoolerDetector, checker: LivenessChecker
) -> AsyncEngine:
    database = settings.database
    url, tls = take_tls(make_url(database.url))
    engine = create_async_engine(
        url,
        echo=database.echo,
        pool_size=settings.pool_size,
        max_overflow=settings.max_overflow,
        pool_timeout=database.pool_timeout_seconds,
        pool_pre_ping=database.pool_pre_ping,
        pool_recycle=database.pool_recycle_seconds,
        pool_use_lifo=True,
        connect_args={
            **tls,
            "timeout": database.connect_timeout_seconds,
            "connection_class": checker.bind(WatchedConnection),
            "server_settings": dict(session) | server_tcp_settings(database.tcp_timeout_seconds),
        },
    )
    event.listen(engine.sync_engine, "do_connect", checker.remember)
    event.listen(engine.sync_engine, "do_connect", route.connect)
    event.listen(engine.sync_engine, "connect", lambda connection, record: connection.run_async(use_exact_dates))
    event.listen(engine.sync_engine, "set_engine_execution_options", _refuse_autocommit)
    return engine


def _refuse_autocommit(engine: Engine, options: Mapping[str, Any]) -> None:
    if is_autocommit(options):
        raise UsageError(f"an engine {AUTOCOMMIT}; a session of ctx.session() may be, for VACUUM and its like")


def _session_settings(settings: Settings, name: str, read_only: str = "") -> dict[str, str]:
    """Return the settings of a session; `read_only` names the one that makes its transactions READ ONLY, if any."""
    database = settings.database
    return ({read_only: "on"} if read_only else {}) | {
        "application_name": _cut(name),
        "statement_timeout": _milliseconds(database.statement_timeout_seconds),
        "lock_timeout": _milliseconds(database.lock_timeout_seconds),
        "idle_in_transaction_session_timeout": _milliseconds(database.idle_in_transaction_timeout_seconds),
    }


def _milliseconds(seconds: float) -> str:
    return str(round(seconds * 1000))


def _cut(name: str) -> str:
    return name.encode()[:_NAME_BYTES].decode(errors="ignore")
