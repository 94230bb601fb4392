"""Rows of the table `author`, and the number of times that each was processed."""

from __future__ import annotations

from sqlalchemy import func, insert, select

from tests.models import Author, authors
from worker.types import Database


async def fill_authors(database: Database, count: int) -> None:
    """Add authors with ids from 1."""
    async with database.transaction() as session:
        await session.execute(insert(Author), authors(count))


async def count_seen(database: Database) -> dict[int, int]:
    """Return how many authors have each value of `seen`: {1: all of them} after a walk that counts each once."""
    async with database.session() as session:
        rows = await session.execute(select(Author.seen, func.count()).group_by(Author.seen))
        return {row[0]: row[1] for row in rows}
