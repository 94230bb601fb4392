"""The grants are derived: each statement of the ledger runs under its role, and each right is needed by one of them."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from importlib.resources import files

import pytest_asyncio
from sqlalchemy import text
from sqlalchemy.dialects.postgresql import asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.db.engine import Database
from worker.db.grants import READER_TABLES, WORKER_PRIVILEGES, grants
from worker.db.tables import metadata
from worker.ledger.queries import source
from worker.queue.outbox import INSERT

ROLE = "lh_derived"
_COMMENT = re.compile(r"--.*")


@dataclass(frozen=True)
class Statement:
    """A statement of Longhaul, and the name of its file."""

    name: str
    sql: str
    parameters: int

    def names(self, table: str) -> bool:
        """Return whether the statement names a table of the ledger."""
        return re.search(rf"\bworker\.{table}\b", self.sql) is not None


def make_statement(name: str, sql: str) -> Statement:
    """Return a statement with numbered parameters."""
    compiled = str(text(_COMMENT.sub("", sql)).compile(dialect=asyncpg.dialect()))  # type: ignore[no-untyped-call]
    compiled = re.sub(r"(\$\d+)::VARCHAR", r"\1", compiled)  # the type of a parameter is unknown, not text
    return Statement(name, compiled, max((int(number) for number in re.findall(r"\$(\d+)", compiled)), default=0))


def ledger_statements() -> list[Statement]:
    """Return the statements of the ledger, and the one that enqueues in a transaction."""
    names = sorted(each.name.removesuffix(".sql") for each in files("worker.ledger.queries").iterdir())
    found = [make_statement(name, source(name)) for name in names if not name.startswith("__")]
    return [*found, make_statement("INSERT of worker/queue/outbox.py", INSERT)]


STATEMENTS = ledger_statements()
READS = [
    each for each in STATEMENTS if each.sql.strip().startswith(("SELECT", "WITH")) and "FOR UPDATE" not in each.sql
]
_CHANGES = re.compile(r"\b(INSERT|UPDATE|DELETE)\b")  # also FOR UPDATE
READS = [each for each in STATEMENTS if not _CHANGES.search(each.sql)]
CHANGES = [each for each in STATEMENTS if _CHANGES.search(each.sql)]


class Refusals:
    """Asks PostgreSQL whether the role may run a statement, without running it."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def prepare(self) -> None:
        """Prepare all statements, so that no parameter needs a value."""
        for number, statement in enumerate(STATEMENTS):
            await self._connection.exec_driver_sql(f"PREPARE derived_{number} AS {statement.sql}")
        await self._connection.exec_driver_sql(f"SET ROLE {ROLE}")

    async def of(self, statements: Iterable[Statement]) -> list[str]:
        """Return the names of the statements that are refused."""
        refused = []
        for statement in statements:
            values = ", ".join(["NULL"] * statement.parameters)
            call = f"derived_{STATEMENTS.index(statement)}" + (f"({values})" if values else "")
            try:
                async with self._connection.begin_nested():
                    await self._connection.exec_driver_sql(f"EXPLAIN EXECUTE {call}")
            except DBAPIError as error:
                assert "permission denied" in str(error), f"{statement.name}: {error}"
                refused.append(statement.name)
        return refused

    async def without(self, privilege: str, table: str, statements: Iterable[Statement]) -> list[str]:
        """Return the names of the statements that are refused if a right is taken away."""
        savepoint = await self._connection.begin_nested()
        await self._connection.exec_driver_sql("RESET ROLE")
        await self._connection.exec_driver_sql(f"REVOKE {privilege} ON worker.{table} FROM {ROLE}")
        await self._connection.exec_driver_sql(f"SET ROLE {ROLE}")
        refused = await self.of(each for each in statements if each.names(table))
        await savepoint.rollback()
        return refused


@pytest_asyncio.fixture
async def admin(database: Database) -> AsyncIterator[AsyncConnection]:
    """A transaction of the owner, in which the role exists; it is rolled back."""
    async with database.engine.connect() as connection:
        await connection.exec_driver_sql(f"CREATE ROLE {ROLE}")
        yield connection
        await connection.rollback()
        await connection.exec_driver_sql("DEALLOCATE ALL")


def test_every_table_of_the_ledger_has_its_rights() -> None:
    assert set(WORKER_PRIVILEGES) == {table.name for table in metadata.sorted_tables}


async def test_a_worker_has_each_right_that_its_statements_need_and_no_other(admin: AsyncConnection) -> None:
    for statement in grants("worker", ROLE):
        await admin.exec_driver_sql(statement)
    refusals = Refusals(admin)
    await refusals.prepare()
    assert await refusals.of(STATEMENTS) == []
    for table, rights in WORKER_PRIVILEGES.items():
        for right in re.findall(r"[A-Z]+(?: \([^)]*\))?", rights):
            assert await refusals.without(right, table, STATEMENTS), f"no statement needs {right} on {table}"


async def test_a_reader_has_each_right_that_its_statements_need_and_no_other(admin: AsyncConnection) -> None:
    for statement in grants("reader", ROLE):
        await admin.exec_driver_sql(statement)
    refusals = Refusals(admin)
    await refusals.prepare()
    unread = sorted(set(WORKER_PRIVILEGES) - set(READER_TABLES))
    readable = [each for each in READS if not any(each.names(table) for table in unread)]
    assert len(readable) > 15
    assert await refusals.of(readable) == []
    for table in READER_TABLES:
        assert await refusals.without("SELECT", table, readable), f"no statement needs SELECT on {table}"
    assert await refusals.of(CHANGES) == [each.name for each in CHANGES]
