"""The examples: a signup enqueues its mail if it commits, and none if it rolls back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import httpx
import pytest
import pytest_asyncio
from django.test import RequestFactory
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from examples import signup_django
from examples.jobs import send_welcome_mail
from examples.signup_fastapi import Base, make_app
from tests.support.waiting import until
from tests.support.workers import working
from worker import Client, Settings
from worker.db.engine import Database


@pytest_asyncio.fixture
async def members(database: Database) -> AsyncIterator[None]:
    """The table of the examples."""
    async with database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    yield
    async with database.engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)


async def count(database: Database, table: str) -> int:
    """Return the number of rows of a table."""
    async with database.connection() as connection:
        return int(await connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0)


async def is_empty(database: Database) -> bool:
    """Return whether the outbox is empty."""
    return await count(database, "worker.outbox") == 0


@pytest.mark.usefixtures("members")
async def test_signups_of_fastapi_and_django_send_a_mail_only_if_they_commit(
    fast: Settings, client: Client, database: Database
) -> None:
    transport = httpx.ASGITransport(make_app(database.engine, client))
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as http:
        bad = await http.post("/signup", params={"name": "Bo", "email": "nobody"})
        good = await http.post("/signup", params={"name": "Ada", "email": "ada@example.com"})
        again = await http.post("/signup", params={"name": "Ada", "email": "ada@example.com"})
    assert (bad.status_code, good.status_code, again.status_code) == (422, 200, 409)
    assert (await count(database, "member"), await count(database, "worker.outbox")) == (1, 1)

    signup_django.configure(fast.database.url.replace("+asyncpg", ""))
    by_django = await asyncio.to_thread(_sign_up_by_django)
    assert (await count(database, "member"), await count(database, "worker.outbox")) == (2, 2)

    async with working(fast, send_welcome_mail):
        assert await client.run(good.json()["run"]).result(timeout=120) == f"Welcome, Ada (no. {good.json()['member']})"
        assert await client.run(by_django["run"]).result(timeout=120) == f"Welcome, Eve (no. {by_django['member']})"
        await until(lambda: is_empty(database))  # rows are deleted after Redis has acknowledged their runs


def _sign_up_by_django() -> dict[str, object]:
    requests = RequestFactory()
    try:
        with pytest.raises(ValueError, match="not a mail address"):
            signup_django.sign_up(requests.post("/signup", {"name": "Bo", "email": "nobody"}))
        answer = signup_django.sign_up(requests.post("/signup", {"name": "Eve", "email": "eve@example.com"}))
        return dict(json.loads(answer.content))
    finally:
        signup_django.connection.close()


async def test_synchronous_sessions_and_connections_enqueue_as_well(
    settings: Settings, client: Client, database: Database
) -> None:
    engine = create_engine(settings.database.url.replace("+asyncpg", "+psycopg"))

    with Session(engine) as session:
        await client.enqueue_in(session, send_welcome_mail, user_id=1, name="rolled back")
        session.rollback()
        await client.enqueue_in(session, send_welcome_mail, user_id=1, name="Ada")
        session.commit()
    with engine.begin() as connection:
        await client.enqueue_many_in(connection, send_welcome_mail, [{"user_id": n, "name": "Bo"} for n in range(3)])
    engine.dispose()
    assert await count(database, "worker.outbox") == 4
