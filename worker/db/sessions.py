"""Session scopes: each opens, commits or rolls back, and closes exactly once, under cancellation too.

asyncio cancels at any `await`, also in the middle of COMMIT or while a connection is returned to its pool. A scope that
is left half closed leaks its connection (SQLAlchemy #8145, #12077, #12099). Each end of a scope therefore runs in a
task of its own, for which a cancellation waits, within a limit.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from asyncpg.exceptions import InterfaceError, InternalClientError, PostgresError
from sqlalchemy import Connection, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import ORMExecuteState, Session
from sqlalchemy.util.concurrency import in_greenlet

from worker.awaiting import track_awaits
from worker.cancellation import run_to_completion
from worker.db.calendar_ends import check_rows_at_ends
from worker.errors import FencedOut, LazyLoadError, UsageError

logger = logging.getLogger("longhaul.db")

#: Why a connection in AUTOCOMMIT is refused, after its subject.
AUTOCOMMIT = (
    "in AUTOCOMMIT has no transactions: a batch would not be committed with its cursor, nor rolled back, and a stream "
    "would break (SQLAlchemy #8929)"
)


def is_autocommit(options: Mapping[str, Any] | None) -> bool:
    """Whether execution options ask for AUTOCOMMIT."""
    return (options or {}).get("isolation_level") == "AUTOCOMMIT"


class GuardedSession(Session):
    """Session that sends no SQL from synchronous code, and that only its scope can end.

    The guard is here, beneath `AsyncSession`, so that `run_sync` and `reset` cannot bypass it.
    """

    ends_with: str | None = None
    #: Whether its job was abandoned: nothing of it is committed any more.
    given_up = False

    def _refuse(self, verb: str) -> None:
        if self.ends_with is not None:
            raise UsageError(
                f"session.{verb}() inside {self.ends_with}: it commits once, at its end; raise to roll it back, "
                f"or use a savepoint for a part of it"
            )

    def flush(self, objects: Sequence[Any] | None = None) -> None:
        check_rows_at_ends(self)
        super().flush(objects)

    def commit(self) -> None:
        self._refuse("commit")
        super().commit()

    def rollback(self) -> None:
        self._refuse("rollback")
        super().rollback()

    def close(self) -> None:
        self._refuse("close")
        super().close()

    def reset(self) -> None:
        self._refuse("reset")
        super().reset()

    def invalidate(self) -> None:
        self._refuse("invalidate")
        super().invalidate()

    def connection(
        self,
        bind_arguments: dict[str, Any] | None = None,
        execution_options: Mapping[str, Any] | None = None,
    ) -> Connection:
        if self.ends_with is not None and is_autocommit(execution_options):
            raise UsageError(f"{self.ends_with} {AUTOCOMMIT}; ctx.session() may be, for VACUUM and its like")
        return super().connection(bind_arguments, execution_options)


@event.listens_for(GuardedSession, "before_commit")
def _refuse_given_up(session: GuardedSession) -> None:
    if session.given_up:
        raise FencedOut("the job was abandoned: its open transaction is not committed")


@event.listens_for(GuardedSession, "do_orm_execute")
def _refuse_lazy_load(state: ORMExecuteState) -> None:
    if not (state.is_relationship_load or state.is_column_load) or in_greenlet():
        return  # eager loaders, AsyncAttrs and run_sync run inside SQLAlchemy's greenlet
    path = state.loader_strategy_path
    if state.is_relationship_load and path is not None and len(path) >= 2:
        mapper, attribute = path[-2], path[-1]
        owner = getattr(getattr(mapper, "class_", None), "__name__", str(mapper))
        name = getattr(attribute, "key", str(attribute))
        raise LazyLoadError(
            f"{owner}.{name} is not loaded, and loading it on access would need SQL from synchronous code. "
            f"Load it with the rows: select(...).options(selectinload({owner}.{name})), or "
            f"joinedload({owner}.{name}) for a single object; or derive {owner} from AsyncAttrs and write "
            f"`await obj.awaitable_attrs.{name}`."
        )
    bind = state.bind_mapper
    owner = bind.class_.__name__ if bind is not None else "the object"
    raise LazyLoadError(
        f"a column of {owner} is deferred or expired, and loading it on access would need SQL from synchronous "
        f"code. Load it with the rows (undefer), call `await session.refresh(obj)`, or derive {owner} from "
        f"AsyncAttrs and write `await obj.awaitable_attrs.<name>`."
    )


#: Methods of SQLAlchemy that do nothing if a job forgets to await them.
_AWAITED = (
    *("execute", "scalar", "scalars", "stream", "stream_scalars", "get", "get_one", "merge", "refresh", "delete"),
    *("flush", "run_sync", "connection", "commit", "rollback"),
)


@track_awaits("session", inherited=_AWAITED)
class ScopedSession(AsyncSession):
    """`AsyncSession` that its scope commits or rolls back.

    In `transaction()` and in a batch, COMMIT and ROLLBACK belong to the scope: a commit by the job would separate the
    work from its checkpoint, or leave the statements after it outside of the transaction.
    """

    sync_session_class = GuardedSession
    sync_session: GuardedSession

    def bind_to_scope(self, scope: str) -> None:
        """Refuse `commit`, `rollback`, `close` and `reset` until the scope ends itself; `scope` names it in errors."""
        self.sync_session.ends_with = scope

    def refuse_commit(self) -> None:
        """Refuse each commit from now on: the session's job was abandoned and still runs."""
        self.sync_session.given_up = True

    async def end_read(self) -> None:
        """End a transaction that has only read. The objects stay; the next statement begins another transaction."""
        scope, self.sync_session.ends_with = self.sync_session.ends_with, None
        try:
            await run_to_completion(super().commit())
        finally:
            self.sync_session.ends_with = scope

    async def end(self, *, commit: bool) -> None:
        """Commit or roll back, and close: the one exit of every scope."""
        self.sync_session.ends_with = None
        await run_to_completion(self._end(commit=commit))

    async def _end(self, *, commit: bool) -> None:
        try:
            if commit:
                await super().commit()
            else:
                await roll_back(super().rollback())
        finally:
            await super().close()


async def roll_back(rollback: Coroutine[Any, Any, None]) -> None:
    """Run a ROLLBACK. On a lost connection there is nothing to roll back."""
    try:
        await rollback
    except (DBAPIError, PostgresError, InterfaceError, InternalClientError) as error:
        # The server has rolled back by itself, and the error that is being raised says more.
        logger.debug("rollback failed: connection lost, error=%s", error)


@asynccontextmanager
async def session_scope(make: Callable[[], ScopedSession]) -> AsyncIterator[ScopedSession]:
    """Open a session that may commit at any time. What is open at the end is committed, or rolled back on an error."""
    session = make()
    try:
        yield session
    except BaseException:
        await session.end(commit=False)
        raise
    await session.end(commit=True)


@asynccontextmanager
async def transaction_scope(make: Callable[[], ScopedSession]) -> AsyncIterator[ScopedSession]:
    """Open a session in one transaction that ends with the block."""
    session = make()
    session.bind_to_scope("a transaction() scope")
    try:
        yield session
    except BaseException:
        await session.end(commit=False)
        raise
    await session.end(commit=True)


@asynccontextmanager
async def savepoint_scope(session: AsyncSession) -> AsyncIterator[AsyncSession]:
    """Open a savepoint in the session's transaction: released at the end, rolled back if the block raises.

    The transaction around it continues in both cases. Catch the error outside of this block.
    """
    # SQLAlchemy's own scope. A cancellation inside it ends the transaction around it, and the savepoint with it.
    async with session.begin_nested():
        yield session
