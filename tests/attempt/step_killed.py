"""Runs durable steps in a process of its own, to be killed: `python -m tests.attempt.step_killed`.

It prints a line before each step records its result, so that a test can kill it there or later.
"""

from __future__ import annotations

import asyncio

from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession

from tests.models import Author
from worker import JobContext, job, load_settings
from worker.db.engine import Database
from worker.testing.runner import JobRunner

#: More lines than the kills of the test can pass.
STEPS = 20


async def add_author(session: AsyncSession, number: int) -> int:
    """Insert an author, which cannot be inserted twice."""
    await session.execute(insert(Author).values(id=number, name="", region=0, code=str(number), seen=0))
    print(number, flush=True)
    return number


async def note(number: int) -> int:
    """Print a line."""
    print(number, flush=True)
    return number


@job
async def add_authors(ctx: JobContext) -> list[int]:
    """Insert an author in each step, with a step without a transaction behind it."""
    numbers = []
    for number in range(STEPS):
        numbers.append(await ctx.step(f"add {number}", add_author, number, transaction=True))
        await ctx.step(f"note {number}", note, number)
    return numbers


async def main() -> None:
    """Run one attempt, and print its result."""
    settings = load_settings()
    database = Database(settings)
    print(f"done {await JobRunner(database, settings).attempt(add_authors, 'run')}")
    await database.close()


if __name__ == "__main__":
    asyncio.run(main())
