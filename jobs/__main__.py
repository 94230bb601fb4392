"""`python -m jobs`: create the missing tables of the example jobs. Your own tables come from your migrations."""

from __future__ import annotations

import asyncio
import sys

from jobs.models import Base
from worker import load_settings
from worker.types import Database


async def make_tables() -> None:
    """Make what is missing."""
    database = Database(load_settings(), "jobs")
    try:
        async with database.connection() as connection:
            await connection.run_sync(Base.metadata.create_all)
    finally:
        await database.close()


if __name__ == "__main__":
    asyncio.run(make_tables())
    sys.stdout.write(f"tables: {', '.join(sorted(Base.metadata.tables))}\n")
