"""The statements of one batch after the other, as the driver sends them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import Select, event, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from tests.batch.test_source import Numbers
from tests.models import Author
from tests.support.authors import count_seen, fill_authors
from tests.support.contexts import MakeContext
from worker import Settings
from worker.attempt.context import JobContext
from worker.db.driver import Driver
from worker.db.engine import Database
from worker.errors import UsageError

pytestmark = pytest.mark.asyncio

KEYS: Select[Any] = select(Author.id)


@pytest_asyncio.fixture
async def filled(database: Database) -> Database:
    """Thirty authors."""
    await fill_authors(database, 30)
    return database


@contextmanager
def logged(database: Database) -> Iterator[list[str]]:
    """Collect the first word of each statement of new connections; the checkpoint as "checkpoint"."""
    sent: list[str] = []

    def note(query: Any) -> None:
        words = query.query
        is_checkpoint = "UPDATE worker.step" in words and "pace" in words
        sent.append("checkpoint" if is_checkpoint else words.strip(" ;").partition(" ISOLATION")[0].split("\n")[0])

    def connected(connection: Any, record: Any) -> None:
        connection.driver_connection.add_query_logger(note)

    event.listen(database.engine.sync_engine, "connect", connected)
    try:
        yield sent
    finally:
        event.remove(database.engine.sync_engine, "connect", connected)


async def use_new_connections(database: Database) -> None:
    await database.engine.dispose()


def between_checkpoints(sent: list[str]) -> list[str]:
    """Return the statements after the first checkpoint, up to and with the second."""
    first = sent.index("checkpoint")
    return sent[first + 1 : sent.index("checkpoint", first + 1) + 1]


async def update_columns(ctx: JobContext, path: Path) -> None:
    async for batch in ctx.chunks(KEYS, size=10):
        await batch.bulk.update(Author, [{"id": key, "seen": 1} for key in batch])


async def read_columns(ctx: JobContext, path: Path) -> None:
    async for _ in ctx.chunks(KEYS, size=10):
        pass


async def sweep(ctx: JobContext, path: Path) -> None:
    await ctx.sweep(update(Author).values(seen=Author.seen + 1), size=10)


async def read_stream(ctx: JobContext, path: Path) -> None:
    async for _ in ctx.stream(KEYS.order_by(Author.id), size=10):
        pass


async def read_source(ctx: JobContext, path: Path) -> None:
    async for _ in ctx.walk(Numbers(30), size=10):
        pass


@pytest.mark.parametrize(
    ("walk", "expected"),
    [
        (update_columns, ["COMMIT", "UPDATE", "checkpoint"]),
        (read_columns, ["COMMIT", "checkpoint"]),
        (sweep, ["COMMIT", "UPDATE", "checkpoint"]),
        (read_source, ["checkpoint"]),
        (read_stream, ["checkpoint"]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_a_batch_sends_no_statement_more_than_it_needs(
    filled: Database, context: MakeContext, tmp_path: Path, walk: Any, expected: list[str]
) -> None:
    await use_new_connections(filled)
    with logged(filled) as sent:
        await walk(context(), tmp_path)
    # The driver does not report statements that it has prepared, and a sweep reads ends of ranges beside its changes.
    words = [statement.split()[0] for statement in between_checkpoints(sent) if not statement.startswith("SELECT")]
    assert words == expected


async def test_the_last_batch_leaves_no_transaction_open(filled: Database, context: MakeContext) -> None:
    ctx = context()
    await update_columns(ctx, Path())
    run = await ctx._attempt.durable_run()
    assert not run.driver.in_transaction
    assert not run.driver.raw.is_in_transaction()


async def test_the_next_transaction_keeps_the_isolation(filled: Database) -> None:
    async with filled.engine.connect() as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ")
        driver = await Driver.from_connection(connection)
        raw = await driver.begin()
        first = await raw.fetchval("SELECT pg_current_xact_id()::text")
        await driver.commit_and_begin()
        assert driver.in_transaction
        assert raw.is_in_transaction()
        assert await raw.fetchval("SELECT pg_current_xact_id()::text") != first
        assert await raw.fetchval("SHOW transaction_isolation") == "repeatable read"
        assert await connection.scalar(text("SELECT pg_current_xact_id()::text"))
        await connection.rollback()
        assert not raw.is_in_transaction()


async def test_commit_and_begin_without_a_transaction_sends_nothing(filled: Database) -> None:
    async with filled.engine.connect() as connection:
        driver = await Driver.from_connection(connection)
        await driver.commit_and_begin()
        assert not driver.raw.is_in_transaction()


async def test_an_error_at_the_boundary_ends_the_transaction_that_was_begun_ahead(
    filled: Database, context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx = context()
    attempt = ctx._attempt
    boundary = attempt.boundary

    async def raise_at_the_second(**options: Any) -> None:
        run = await attempt.durable_run()
        if run.rows:
            assert run.driver.raw.is_in_transaction()
            raise RuntimeError("the throttle is broken")
        await boundary(**options)

    monkeypatch.setattr(attempt, "boundary", raise_at_the_second)
    with pytest.raises(RuntimeError, match="broken"):
        await update_columns(ctx, Path())
    run = await attempt.durable_run()
    assert not run.driver.raw.is_in_transaction()
    assert await count_seen(filled) == {0: 20, 1: 10}


async def test_a_source_whose_body_takes_long_has_no_transaction_meanwhile(
    filled: Database, context: MakeContext, settings: Settings
) -> None:
    ctx = context()
    async for batch in ctx.walk(Numbers(30), size=10):
        run = await ctx._attempt.durable_run()
        assert not run.driver.raw.is_in_transaction()
        assert not batch._transaction.is_open


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK", "end"])
async def test_a_statement_that_ends_the_transaction_is_an_error_of_the_batch(
    filled: Database, context: MakeContext, end: str
) -> None:
    ctx = context()
    with pytest.raises(UsageError, match=r"batch 2 .*has ended its transaction"):
        async for batch in ctx.chunks(select(Author), size=10):
            batch[0].seen = 1
            await batch.session.flush()
            if batch.number == 2:
                await batch.session.execute(text(end))

    async def end_step(session: AsyncSession) -> None:
        await session.execute(text(end))

    with pytest.raises(UsageError, match=r"step 'end': .*has ended its transaction"):
        await context().step("end", end_step, transaction=True)
    async with filled.session() as session:
        assert await session.scalar(text("SELECT sum(rows) FROM worker.step")) == 10
        assert await session.scalar(text("SELECT count(*) FROM worker.step WHERE name = 'end' AND done")) == 0
