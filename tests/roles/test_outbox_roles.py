"""Clients and callers of the SQL function enqueue under their roles, and a worker relays their runs under its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError

from tests.models import Author
from tests.roles.conftest import with_role
from tests.support.authors import fill_authors
from tests.support.workers import working
from worker import Client, JobContext, Settings, job
from worker.db.engine import Database
from worker.db.grants import grants


@job
async def walk_authors(ctx: JobContext) -> int:
    """Count each author once."""
    async for batch in ctx.chunks(select(Author), size=10):
        for author in batch:
            author.seen += 1
    return ctx.rows_done


@asynccontextmanager
async def role(settings: Settings, kind: str) -> AsyncIterator[Database]:
    """Return a database that a role of a kind is connected to."""
    opened = Database(with_role(settings, kind), kind)
    try:
        yield opened
    finally:
        await opened.close()


@pytest.mark.usefixtures("roles")
async def test_a_worker_relays_what_clients_and_callers_of_the_function_enqueue(
    fast: Settings, client: Client, database: Database
) -> None:
    await fill_authors(database, 30)
    async with working(with_role(fast, "worker"), walk_authors):
        async with role(fast, "client") as limited, limited.transaction() as session:
            by_row = await client.enqueue_in(session, walk_authors.options(priority=3))
            [also] = await client.enqueue_many_in(session, walk_authors.options(delay=0.01), [{}])
        async with role(fast, "enqueue") as limited, limited.transaction() as session:
            by_function = await session.scalar(text("SELECT worker.enqueue('walk_authors')"))
        for run in (by_row, also, client.run(by_function)):
            assert await run.result(timeout=120) == 30


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


@pytest.mark.parametrize("headers", ["no JSON", "[]", '"x"', '{"a": 1}', '{"a": null}', '{"Longhaul-selection": "x"}'])
async def test_the_function_refuses_bad_headers(database: Database, headers: str) -> None:
    async with database.session() as session:
        await session.execute(text("SELECT set_config('longhaul.headers', :given, true)"), {"given": headers})
        with pytest.raises(DBAPIError, match=r"longhaul\.headers|invalid input syntax for type json"):
            await session.execute(text("SELECT worker.enqueue('j')"))


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
