"""Least privilege: the output of `worker grants` is enough for each kind of role, and grants no more."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit, urlunsplit

import pytest
import pytest_asyncio
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from tests.models import Author
from tests.support.authors import count_seen, fill_authors
from tests.support.workers import working
from worker import Client, JobContext, Settings, job
from worker.db.engine import Database
from worker.db.grants import RoleKind, grants
from worker.ledger import Ledger

PASSWORD = "just-for-this-test"


@job
async def walk_authors(ctx: JobContext) -> int:
    """Count each author once."""
    async for batch in ctx.chunks(select(Author), size=10):
        for author in batch:
            author.seen += 1
    return ctx.rows_done


def settings_of(settings: Settings, role: str) -> Settings:
    """Return settings with which a role connects."""
    parts = urlsplit(settings.database.url)
    place = parts.netloc.rpartition("@")[2]
    url = urlunsplit(parts._replace(netloc=f"{role}:{PASSWORD}@{place}"))
    return settings.model_copy(update={"database": settings.database.model_copy(update={"url": url})})


@asynccontextmanager
async def role(settings: Settings, kind: str) -> AsyncIterator[Database]:
    """Return a database that a role of a kind is connected to."""
    opened = Database(settings_of(settings, f"lh_{kind}"), kind)
    try:
        yield opened
    finally:
        await opened.close()


@pytest_asyncio.fixture
async def roles(database: Database) -> AsyncIterator[None]:
    """A role of each kind, with the grants that `worker grants` prints."""
    kinds: tuple[RoleKind, ...] = ("worker", "client", "enqueue", "reader")
    async with database.connection() as connection:
        for kind in kinds:
            await connection.execute(text(f"CREATE ROLE lh_{kind} LOGIN PASSWORD '{PASSWORD}' NOSUPERUSER"))
            for statement in grants(kind, f"lh_{kind}"):
                await connection.execute(text(statement))
        await connection.execute(text("GRANT USAGE ON SCHEMA public TO lh_worker"))
        await connection.execute(text("GRANT SELECT, UPDATE ON author TO lh_worker"))
    yield
    async with database.connection() as connection:
        for kind in kinds:
            await connection.execute(text(f"DROP OWNED BY lh_{kind}"))
            await connection.execute(text(f"DROP ROLE lh_{kind}"))


@pytest.mark.usefixtures("roles")
async def test_a_worker_needs_its_grants_alone(fast: Settings, client: Client, database: Database) -> None:
    await fill_authors(database, 30)
    async with working(settings_of(fast, "lh_worker"), walk_authors):
        run = await client.enqueue(walk_authors)
        assert await run.result(timeout=120) == 30
    assert await count_seen(database) == {1: 30}


@pytest.mark.usefixtures("roles")
async def test_a_reader_reads_and_changes_nothing(fast: Settings) -> None:
    reader = Database(settings_of(fast, "lh_reader"), "reader")
    try:
        assert await Ledger(reader).list_runs() == []
        with pytest.raises(DBAPIError, match="permission denied"):
            await Ledger(reader).delete_dead(["any"])
    finally:
        await reader.close()


@pytest.mark.usefixtures("roles")
async def test_a_worker_relays_what_clients_and_callers_of_the_function_enqueue(
    fast: Settings, client: Client, database: Database
) -> None:
    await fill_authors(database, 30)
    async with working(settings_of(fast, "lh_worker"), walk_authors):
        async with role(fast, "client") as limited, limited.transaction() as session:
            by_row = await client.enqueue_in(session, walk_authors.options(priority=3))
            [also] = await client.enqueue_many_in(session, walk_authors.options(delay=0.01), [{}])
        async with role(fast, "enqueue") as limited, limited.transaction() as session:
            by_function = await session.scalar(text("SELECT worker.enqueue('walk_authors')"))
        for run in (by_row, also, client.run(by_function)):
            assert await run.result(timeout=120) == 30


@pytest.mark.usefixtures("roles")
@pytest.mark.parametrize("kind", ["client", "enqueue"])
async def test_a_role_that_enqueues_can_do_nothing_else(fast: Settings, database: Database, kind: str) -> None:
    async with role(fast, kind) as limited:
        with pytest.raises(DBAPIError, match="permission denied"):
            await Ledger(limited).list_runs()
        refused = [
            "SELECT * FROM worker.outbox",
            "UPDATE worker.outbox SET problem = NULL",
            "DELETE FROM worker.outbox",
            "INSERT INTO worker.outbox (run_id, job, payload, problem) VALUES ('a', 'b', 'c', 'd')",
            "INSERT INTO worker.run (id) VALUES ('a')",
            "CREATE TABLE worker.mine (id int)",
        ]
        if kind == "enqueue":
            refused.append("INSERT INTO worker.outbox (run_id, job, payload) VALUES ('a', 'b', 'c')")
        for statement in refused:
            with pytest.raises(DBAPIError, match="permission denied"):
                async with limited.transaction() as session:
                    await session.execute(text(statement))


BAD_CALLS = [
    "NULL",
    "''",
    "repeat('x', 501)",
    "E'a\\nb'",
    "'j', '[1]'",
    "'j', '1'",
    "'j', 'null'",
    "'j', id => ''",
    "'j', id => E'a\\tb'",
    "'j', id => repeat('x', 501)",
    "'j', queue => ''",
    "'j', queue => 'worker:dead:at'",
    "'j', queue => 'arq:job:x'",
    "'j', queue => 'arq:queue:health-check'",
    "'j', priority => 10",
    "'j', priority => -1",
    "'j', delay => interval '-1 s'",
    "'j', delay => interval '101 years'",
    "'j', jsonb_build_object('x', repeat('x', 4200000))",
]


async def test_the_function_refuses_bad_arguments_and_ignores_the_callers_search_path(database: Database) -> None:
    for arguments in BAD_CALLS:
        with pytest.raises(DBAPIError, match=r"worker\.enqueue: "):
            async with database.transaction() as session:
                await session.execute(text(f"SELECT worker.enqueue({arguments})"))
    async with database.session() as session:
        # A caller that could put its own functions before those of the system would run them as the owner.
        await session.execute(text("CREATE FUNCTION public.length(text) RETURNS int LANGUAGE sql AS 'SELECT 1/0'"))
        await session.execute(text("SET LOCAL search_path = public, pg_catalog"))
        known = await session.scalar(
            text("SELECT worker.enqueue('j', '{\"a\": 1}', 'my id', interval '1 day', 'slow', 9)")
        )
        row = (await session.execute(text("SELECT *, due_at - created_at AS delay FROM worker.outbox"))).one()
        await session.rollback()
    assert (known, row.run_id, row.job, row.queue, row.priority, row.problem) == (
        "my id",
        "my id",
        "j",
        "slow",
        9,
        None,
    )
    assert round(row.delay.total_seconds()) == 86_400


def test_names_of_roles_are_quoted() -> None:
    assert all('TO "Odd ""role";' in statement for statement in grants("worker", 'Odd "role'))
