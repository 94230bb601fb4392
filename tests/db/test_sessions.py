"""Scopes end exactly once, by commit or rollback, under cancellation too."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError

from tests.models import Author
from worker import LonghaulError
from worker.db.engine import Database
from worker.db.sessions import ScopedSession


def author(code: str) -> Author:
    return Author(name="x", region=1, code=code, seen=0)


async def codes(database: Database) -> set[str]:
    async with database.session() as session:
        return set(await session.scalars(select(Author.code)))


async def test_a_transaction_commits_once_or_not_at_all(database: Database) -> None:
    async with database.transaction() as session:
        session.add(author("kept"))
    with pytest.raises(RuntimeError):
        async with database.transaction() as session:
            session.add(author("lost"))
            await session.flush()
            raise RuntimeError
    assert await codes(database) == {"kept"}


@pytest.mark.parametrize("verb", ["commit", "rollback", "close"])
async def test_the_end_of_a_transaction_is_its_scopes(database: Database, verb: str) -> None:
    with pytest.raises(LonghaulError, match=rf"session.{verb}\(\) inside a transaction"):
        async with database.transaction() as session:
            session.add(author("lost"))
            await getattr(session, verb)()
    assert await codes(database) == set()


async def test_a_session_may_commit_in_between(database: Database) -> None:
    with pytest.raises(RuntimeError):
        async with database.session() as session:
            session.add(author("first"))
            await session.commit()
            session.add(author("second"))
            await session.flush()
            raise RuntimeError
    assert await codes(database) == {"first"}


async def test_a_savepoint_is_rolled_back_alone(database: Database) -> None:
    async with database.transaction() as session:
        session.add(author("outer"))
        with pytest.raises(IntegrityError):
            async with database.savepoint(session):
                session.add_all([author("outer"), author("inner")])
        async with database.savepoint(session):
            session.add(author("second"))
    assert await codes(database) == {"outer", "second"}


async def test_a_cancellation_in_the_middle_of_a_commit_waits_for_it(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    committing, go_on = asyncio.Event(), asyncio.Event()
    end = ScopedSession._end

    async def slow_end(self: ScopedSession, *, commit: bool) -> None:
        committing.set()
        await go_on.wait()
        await end(self, commit=commit)

    monkeypatch.setattr(ScopedSession, "_end", slow_end)

    async def write() -> None:
        async with database.transaction() as session:
            session.add(author("committed"))

    task = asyncio.create_task(write())
    await committing.wait()
    for _ in range(3):  # also when repeated
        task.cancel()
        await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await codes(database) == {"committed"}
    assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_the_connection_comes_back_clean(database: Database) -> None:
    for _ in range(3):
        with pytest.raises(RuntimeError):
            async with database.transaction() as session:
                await session.execute(text("SELECT 1"))
                raise RuntimeError
    async with database.session() as session:
        idle = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
        assert await session.scalar(text(idle)) == 0
        assert await session.scalar(select(func.count()).select_from(Author)) == 0
