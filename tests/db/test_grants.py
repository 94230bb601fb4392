"""Least privilege: the output of `worker grants` is enough for each kind of role, and grants no more."""

from __future__ import annotations

from collections.abc import AsyncIterator
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


@pytest_asyncio.fixture
async def roles(database: Database) -> AsyncIterator[None]:
    """A role of each kind, with the grants that `worker grants` prints."""
    kinds: tuple[RoleKind, ...] = ("worker", "client", "reader")
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
async def test_a_client_cannot_read_the_ledger(fast: Settings) -> None:
    client = Database(settings_of(fast, "lh_client"), "client")
    try:
        with pytest.raises(DBAPIError, match="permission denied"):
            await Ledger(client).list_runs()
    finally:
        await client.close()


def test_names_of_roles_are_quoted() -> None:
    assert all('TO "Odd ""role";' in statement for statement in grants("worker", 'Odd "role'))
