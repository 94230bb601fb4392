"""Sessions whose workers stopped in the middle of a transaction or of a command: they end, and release their locks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from asyncpg import Connection, PostgresError
from sqlalchemy import text
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tests.support.waiting import until
from worker.cancellation import cancel_and_wait
from worker.db.engine import Database
from worker.ledger import Ledger, RunSpec, owned_run
from worker.ledger.frozen_sessions import FrozenSessions

SPEC = RunSpec("frozen", "walk", "arq:queue", "{}", "[]")
LIMIT = 60.0
LOCK = "SELECT id FROM worker.run WHERE id = 'frozen' FOR NO KEY UPDATE"


@asynccontextmanager
async def raw_session(database: Database, name: str = "longhaul:frozen") -> AsyncIterator[Connection[Any]]:
    """Open a session of a worker."""
    async with database.engine.connect() as connection:
        raw: Any = (await connection.get_raw_connection()).driver_connection
        await raw.execute(f"SET application_name = '{name}'")
        yield raw
        raw.terminate()
        await connection.invalidate()


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


class FrozenCopy:
    """Feeds a COPY as long as the test lets it."""

    def __init__(self, raw: Connection[Any]) -> None:
        self._go = asyncio.Semaphore(0)
        self._sent = 0
        self._task = asyncio.create_task(raw.copy_to_table("target", source=self._read(), columns=["id", "touched"]))

    async def _read(self) -> AsyncIterator[bytes]:
        while True:
            await self._go.acquire()
            self._sent += 1
            yield f"{self._sent}\tf\n".encode() * 20_000  # more than the server's buffer

    def feed(self) -> None:
        """Send some rows."""
        self._go.release()

    async def end(self) -> None:
        """End the COPY."""
        with suppress(PostgresError, OSError, asyncio.CancelledError):
            await cancel_and_wait(self._task)


async def state(database: Database, pid: int) -> str:
    """Return the state of a session, and what it waits for; "" if it has ended."""
    shown = "SELECT state || ' ' || wait_event FROM pg_stat_activity WHERE pid = :pid"
    async with database.session() as session:
        return await session.scalar(text(shown), {"pid": pid}) or ""


@pytest.mark.parametrize("moment", ["between two statements", "within a statement"])
async def test_a_claim_ends_the_session_of_an_owner_that_froze_before_it_was_recorded(
    database: Database, moment: str
) -> None:
    first = await Ledger(database, "first").claim(SPEC)
    async with raw_session(database) as raw:
        await raw.execute("BEGIN")
        await raw.execute(LOCK)
        if moment == "within a statement":
            await raw.prepare("SELECT 1")  # its messages end with Flush: the server waits for the next one
        second = await asyncio.wait_for(Ledger(database, "second").claim(SPEC), 30)
        assert second.takeovers == 1
        await until(lambda: _has_ended(database, raw))
    await second.close()
    await first.close()


async def test_a_claim_looks_again_after_a_look_has_failed(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await Ledger(database, "first").claim(SPEC)
    failures: list[Exception] = [PoolTimeout("no connection is free"), ConnectionResetError("reset")]

    class Failing(Database):
        def connection(self) -> Any:
            if failures:
                raise failures.pop()
            return database.connection()

    blockers = owned_run.terminating_blockers
    failing = Failing.__new__(Failing)
    monkeypatch.setattr(owned_run, "terminating_blockers", lambda _, *more: blockers(failing, *more))
    async with raw_session(database) as raw:
        await raw.execute("BEGIN")
        await raw.execute(LOCK)
        second = await asyncio.wait_for(Ledger(database, "second").claim(SPEC), 30)
    assert not failures
    await second.close()
    await first.close()


async def _has_ended(database: Database, raw: Connection[Any]) -> bool:
    return not await state(database, raw.get_server_pid())


async def test_a_session_that_stopped_within_a_command_ends_after_the_limit(database: Database) -> None:
    clock = Clock()
    sessions = FrozenSessions(database, LIMIT, clock)
    async with raw_session(database) as raw:
        await raw.execute("BEGIN")
        await raw.prepare("SELECT 1")
        assert await state(database, raw.get_server_pid()) == "active ClientRead"
        assert await sessions.look() == 0
        clock.seconds = LIMIT - 1
        assert await sessions.look() == 0
        clock.seconds = LIMIT
        assert await sessions.look() == 1
        await until(lambda: _has_ended(database, raw))


async def test_a_session_that_continues_is_not_ended(database: Database) -> None:
    clock = Clock()
    sessions = FrozenSessions(database, LIMIT, clock)
    async with raw_session(database) as raw:
        await raw.execute("BEGIN")
        for number in range(4):
            prepared = await raw.prepare(f"SELECT {number}::int")
            assert await sessions.look() == 0
            clock.seconds += LIMIT / 2
            assert await prepared.fetchval() == number
            clock.seconds += LIMIT / 2
        assert await raw.fetchval("SELECT 1") == 1


@pytest.mark.parametrize("case", ["idle in transaction", "idle", "of another program"])
async def test_sessions_of_other_kinds_are_left_alone(database: Database, case: str) -> None:
    clock = Clock()
    sessions = FrozenSessions(database, LIMIT, clock)
    async with raw_session(database, "other" if case == "of another program" else "longhaul:frozen") as raw:
        if case != "idle":
            await raw.execute("BEGIN")
        if case == "of another program":
            await raw.prepare("SELECT 1")
        assert await sessions.look() == 0
        clock.seconds = 2 * LIMIT
        assert await sessions.look() == 0
        assert await raw.fetchval("SELECT 1") == 1


async def test_a_copy_ends_after_it_was_not_fed_for_the_limit(database: Database) -> None:
    clock = Clock()
    sessions = FrozenSessions(database, LIMIT, clock)
    async with raw_session(database) as raw:
        pid = raw.get_server_pid()
        await raw.execute("CREATE TEMPORARY TABLE target (id integer, touched boolean)")
        copy = FrozenCopy(raw)
        copied = "SELECT bytes_processed FROM pg_stat_progress_copy WHERE pid = :pid"
        before = -1
        for _ in range(3):
            copy.feed()

            async def has_read() -> bool:
                async with database.session() as session:
                    done = await session.scalar(text(copied), {"pid": pid}) or 0
                nonlocal before
                is_further = done > before and await state(database, pid) == "active ClientRead"
                before = done if is_further else before
                return is_further

            await until(has_read)
            assert await sessions.look() == 0
            clock.seconds += LIMIT
        assert await sessions.look() == 1
        await until(lambda: _has_ended(database, raw))
        await copy.end()
