"""The classification of PostgreSQL errors from every layer."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from sqlalchemy import Integer, bindparam, select, text
from sqlalchemy.exc import DBAPIError

from worker.db.driver import Driver
from worker.db.engine import Database
from worker.db.errors import ErrorKind, blames_a_row, classify, is_transient, is_unavailable
from worker.errors import BulkError

KINDS = {
    ErrorKind.UNAVAILABLE: ["08000", "08006", "57P01", "57P02", "57P03", "53300", "25006", "25P03", "25P04"],
    ErrorKind.TRANSIENT: ["40001", "40P01", "55P03", "57014"],
    ErrorKind.ROW: ["22001", "22003", "22P02", "23502", "23503", "23505", "23514", "23P01", "44000", "428C9"],
    ErrorKind.OTHER: ["42501", "42P01", "42703", "53100", "53200", "58030", "P0001", "XX000", "0A000"],
}


def raising(code: str) -> str:
    return f"DO $$ BEGIN RAISE 'x' USING ERRCODE = '{code}'; END $$"


@pytest.mark.parametrize("kind", list(KINDS))
async def test_classify_knows_a_code_by_each_way_to_the_server(database: Database, kind: ErrorKind) -> None:
    for code in KINDS[kind]:
        async with database.engine.connect() as connection:
            raw = (await Driver.from_connection(connection)).raw
            with pytest.raises(asyncpg.PostgresError) as driver:
                await raw.execute(raising(code))
            with pytest.raises(DBAPIError) as sqlalchemy:
                await connection.execute(text(raising(code)))
        wrapped = BulkError("row 1")
        wrapped.__cause__ = sqlalchemy.value
        for error in (driver.value, sqlalchemy.value, wrapped):
            assert classify(error) is kind, code
        assert is_unavailable(driver.value) is (kind is ErrorKind.UNAVAILABLE)
        assert is_transient(driver.value) is (kind is ErrorKind.TRANSIENT)
        assert blames_a_row(driver.value) is (kind is ErrorKind.ROW)


async def test_a_terminated_backend_is_a_lost_connection_by_each_way(database: Database) -> None:
    errors: list[BaseException] = []
    for way in ("driver", "sqlalchemy", "begin"):
        async with database.engine.connect() as connection, database.engine.connect() as other:
            driver = await Driver.from_connection(connection)
            pid = await connection.scalar(text("SELECT pg_backend_pid()"))
            await connection.rollback()
            await other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
            with pytest.raises(Exception) as failed:
                if way == "driver":
                    await driver.raw.execute("SELECT 1")
                elif way == "begin":
                    await driver.begin()
                else:
                    await connection.execute(text("SELECT 1"))
            errors.append(failed.value)
            await connection.invalidate()
    assert [classify(error) for error in errors] == [ErrorKind.UNAVAILABLE] * 3


def test_a_connection_that_has_read_its_servers_last_message_is_lost() -> None:
    error = asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress")
    assert classify(error) is ErrorKind.UNAVAILABLE


def test_an_outdated_statement_is_transient() -> None:
    assert classify(asyncpg.InvalidCachedStatementError("cached statement plan is invalid")) is ErrorKind.TRANSIENT
    assert classify(asyncpg.OutdatedSchemaCacheError("unexpected number of attributes")) is ErrorKind.TRANSIENT


async def test_two_tasks_on_one_connection_are_an_error_of_the_job(database: Database) -> None:
    async with database.engine.connect() as connection:
        raw = (await Driver.from_connection(connection)).raw
        first = asyncio.create_task(raw.execute("SELECT pg_sleep(0.2)"))
        await asyncio.sleep(0)
        with pytest.raises(asyncpg.InterfaceError) as failed:
            await raw.execute("SELECT 1")
        await first
    assert classify(failed.value) is ErrorKind.OTHER
    assert not blames_a_row(failed.value)


async def test_a_value_that_the_driver_cannot_encode_is_of_its_row(database: Database) -> None:
    async with database.engine.connect() as connection:
        raw = (await Driver.from_connection(connection)).raw
        with pytest.raises(Exception, match="str") as driver:
            await raw.fetchval("SELECT $1::int", "text")
        with pytest.raises(DBAPIError) as sqlalchemy:
            await connection.execute(select(bindparam("x", "text", type_=Integer)))
    assert classify(driver.value) is classify(sqlalchemy.value) is ErrorKind.ROW


def test_errors_of_the_job_itself_are_not_of_the_server() -> None:
    assert classify(ConnectionRefusedError("a server of the job's own")) is ErrorKind.OTHER
    assert classify(RuntimeError("no")) is ErrorKind.OTHER
