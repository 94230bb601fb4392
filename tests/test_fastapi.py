"""Scopes outside of a job, as dependencies of FastAPI."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from tests.models import Author
from worker.types import Database


def make_app(database: Database) -> FastAPI:
    """Return an application with one dependency for reads, and one whose transaction is the request."""

    async def session_of_request() -> AsyncIterator[AsyncSession]:
        async with database.session() as session:
            yield session

    async def transaction_of_request() -> AsyncIterator[AsyncSession]:
        async with database.transaction() as session:
            yield session

    app = FastAPI()

    # Evaluated here, and not as text: the dependencies are local names.
    async def count(session: AsyncSession) -> int:
        return int(await session.scalar(select(func.count()).select_from(Author)) or 0)

    async def create(code: str, session: AsyncSession, fail: bool = False) -> int:
        author = Author(name="x", region=1, code=code, seen=0)
        session.add(author)
        await session.flush()
        if fail:
            raise HTTPException(409, "after the write")
        return author.id

    count.__annotations__["session"] = Annotated[AsyncSession, Depends(session_of_request)]
    create.__annotations__ |= {"session": Annotated[AsyncSession, Depends(transaction_of_request)]}
    app.get("/authors")(count)
    app.post("/authors")(create)
    return app


@pytest.fixture
async def http(database: Database) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the application."""
    transport = httpx.ASGITransport(make_app(database))
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        yield client


async def test_a_request_that_succeeds_is_committed(http: httpx.AsyncClient, database: Database) -> None:
    assert (await http.post("/authors", params={"code": "a"})).status_code == 200
    assert (await http.get("/authors")).json() == 1
    assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_a_request_that_fails_is_rolled_back(http: httpx.AsyncClient, database: Database) -> None:
    assert (await http.post("/authors", params={"code": "a", "fail": True})).status_code == 409
    assert (await http.get("/authors")).json() == 0
    assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_many_requests_at_once_share_the_pool_and_no_session(http: httpx.AsyncClient, database: Database) -> None:
    answers = await asyncio.gather(*(http.post("/authors", params={"code": str(number)}) for number in range(100)))
    assert len({answer.json() for answer in answers}) == 100
    assert (await http.get("/authors")).json() == 100
    assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
