"""Runs jobs on the tables of the shop, breaks them off in the middle, and reads the log of their effects."""

from __future__ import annotations

import uuid
from collections import Counter
from typing import Any

import pytest
from asyncpg.exceptions import PostgresError
from sqlalchemy import func, insert, select, text
from sqlalchemy.exc import DBAPIError

from tests.maintenance.tables import SCHEMA, TRIGGERS, Base, Missing, Visit, visits, watch
from worker import Job, LonghaulError, Settings
from worker.maintenance.target import table_name
from worker.testing.runner import JobRunner
from worker.types import Database

_TABLES = [table for table in Base.metadata.tables.values() if table is not Missing.__table__]
_WATCHED = {"visit": "id", "old visit": "id", "total": "shop", "Customer": "Id", "order": "id"}


class Shop:
    """The tables of a test, in a database of their own, which is made once in a process."""

    is_made = False

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings
        self.run = JobRunner(database, settings)
        self.run_id = uuid.uuid4().hex

    async def empty(self) -> None:
        """Empty the tables. Make them if they are not there, or if a test has changed them."""
        async with self.database.engine.begin() as connection:
            raw: Any = (await connection.get_raw_connection()).driver_connection
            if Shop.is_made:
                names = [table_name(table) for table in _TABLES]
                await raw.execute(f'TRUNCATE {", ".join(names)}, "{SCHEMA}".log, "{SCHEMA}".fuse RESTART IDENTITY')
                return
            await raw.execute(f'DROP SCHEMA IF EXISTS "{SCHEMA}" CASCADE; CREATE SCHEMA "{SCHEMA}"')
            await connection.run_sync(Base.metadata.create_all, tables=_TABLES)
            await raw.execute(TRIGGERS + "".join(watch(table, column) for table, column in _WATCHED.items()))
        Shop.is_made = True

    async def execute(self, statement: Any, rows: Any = None) -> Any:
        """Execute one statement."""
        async with self.database.transaction() as session:
            return await session.execute(text(statement) if isinstance(statement, str) else statement, rows)

    async def execute_all(self, statements: list[str]) -> None:
        """Execute statements in one transaction."""
        async with self.database.transaction() as session:
            for statement in statements:
                await session.execute(text(statement))

    async def fill(self, entity: Any, rows: list[dict[str, Any]]) -> None:
        """Insert rows, which the log does not show."""
        await self.execute(insert(entity), rows)
        await self.execute(f'DELETE FROM "{SCHEMA}".log')

    async def fill_visits(self, count: int = 45) -> None:
        """Insert visits."""
        await self.fill(Visit, visits(count))

    async def list(self, *columns: Any) -> list[Any]:
        """Return rows in the order of their columns, or the values of one column."""
        async with self.database.session() as session:
            found = (await session.execute(select(*columns).order_by(*columns))).all()
        return [row[0] if len(columns) == 1 else tuple(row) for row in found]

    async def count(self, entity: Any) -> int:
        """Return the number of rows of a table."""
        async with self.database.session() as session:
            return int(await session.scalar(select(func.count()).select_from(entity)) or 0)

    async def read_log(self, operation: str, table: str) -> Counter[int]:
        """Return how often each row of a table had an effect."""
        async with self.database.session() as session:
            found = await session.execute(
                text(f'SELECT id FROM "{SCHEMA}".log WHERE op = :op AND tab = :tab'), {"op": operation, "tab": table}
            )
            return Counter(row[0] for row in found)

    async def count_largest_transaction(self, operation: str) -> int:
        """Return the most effects of one kind on one table in one transaction."""
        async with self.database.session() as session:
            largest = select(func.count()).select_from(text(f'"{SCHEMA}".log')).where(text("op = :op"))
            largest = largest.group_by(text("tx"), text("tab")).order_by(func.count().desc()).limit(1)
            return int(await session.scalar(largest, {"op": operation}) or 0)

    async def break_off(self, job: Job[..., Any], fuse: int, *args: Any, **kwargs: Any) -> None:
        """Run the first attempt of the run, which fails at the row with an id. The next attempt will not."""
        await self.execute(f'INSERT INTO "{SCHEMA}".fuse VALUES ({fuse})')
        with pytest.raises((DBAPIError, LonghaulError, PostgresError), match="the fuse is blown"):
            await self.run.attempt(job, self.run_id, *args, **kwargs)
        await self.execute(f'DELETE FROM "{SCHEMA}".fuse')

    async def resume(self, job: Job[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the next attempt of the run."""
        return await self.run.attempt(job, self.run_id, *args, **kwargs)
