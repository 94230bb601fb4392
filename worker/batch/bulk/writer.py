"""Writes groups of rows to one table in one transaction: by a fast path if it is eligible, else row by row."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from sqlalchemy import Column, insert, update

from worker.batch.bulk import eligibility
from worker.batch.bulk.array_literals import encode_arrays
from worker.batch.bulk.diagnose import STATEMENT_ERRORS, driver_error, find_first_failing, find_row, make_error
from worker.batch.bulk.row_by_row import RowByRow, RowsAtTheEnds
from worker.batch.bulk.rows import Group, bind_values, exclude, fill_defaults
from worker.batch.bulk.statements import delete_statement, insert_statement, update_statement, upsert_statement
from worker.batch.bulk.target import BulkTarget
from worker.batch.transaction import BatchTransaction, BulkTransaction
from worker.cancellation import run_to_completion
from worker.db.driver import connection_info, execution_options
from worker.db.engine import Database
from worker.db.errors import ErrorKind, blames_a_row, classify
from worker.db.sessions import roll_back
from worker.db.statement_internals import rewrites_statements
from worker.errors import BulkError

Columns = list[Column[Any]]
Transaction = BatchTransaction | BulkTransaction


class BulkWriter:
    """Writes rows to one table in a transaction.

    Args:
        transaction: the transaction.
        target: the table.
        facts: the catalog's description, which decides on the fast paths; None to rule all of them out.
        database: provides the connection for the search for a failing row.
    """

    def __init__(
        self,
        transaction: Transaction,
        target: BulkTarget,
        facts: eligibility.TableFacts | None,
        database: Database,
    ) -> None:
        self._transaction = transaction
        self._target = target
        self._facts = facts
        self._database = database

    @classmethod
    async def open(cls, transaction: Transaction, target: BulkTarget, database: Database) -> BulkWriter:
        """Return a writer with the catalog's description of the table."""
        facts = None
        translated = execution_options(transaction.connection).get("schema_translate_map")
        if not translated and not rewrites_statements(transaction.connection):
            known = connection_info(transaction.connection)
            facts = await eligibility.read_facts(await transaction.driver(), known, target)
        return cls(transaction, target, facts, database)

    async def insert_fast(self, given: Group) -> bool:
        """Insert by COPY, or from arrays if COPY is not possible.

        Returns:
            False if neither writes the same values as SQLAlchemy; nothing is written then.
        """
        facts, target = self._facts, self._target
        if facts is None or not facts.is_table or target.version is not None:
            return False
        if eligibility.needs_context(target, "default", given.columns):
            return False
        group = fill_defaults(target, given, "default")
        if eligibility.none_is_left_out(target, group, facts):
            return False
        if eligibility.are_copyable(group.columns, facts):
            await self._copy(group)
            return True
        casts, arrays = self._arrays(group)
        if not casts or any(column.name in facts.generated for column in casts):
            return False
        await self._send(group, insert_statement(target, casts), arrays, whole_rows=True)
        return True

    async def insert_dicts(self, dicts: list[dict[str, Any]], positions: Sequence[int], group: Group | None) -> None:
        """Insert rows with SQLAlchemy's own statement.

        Args:
            dicts: the rows.
            positions: the position of each in the list that the caller gave.
            group: the same rows, if all of them name the same columns.
        """
        session, statement = self._transaction.session, insert(self._target.entity)

        async def run(count: int) -> int:
            await session.execute(statement, dicts[:count])
            return count

        if self._facts is not None and group is not None and eligibility.are_copyable(group.columns, self._facts):
            # The search for a failing row needs no savepoint: an empty copy of the table fails on the same row.
            await self._transaction.driver()
            await self._explained(group, lambda: run(len(dicts)), whole_rows=True, adds_defaults=True)
        else:
            await self._in_savepoint(positions, run)

    async def update_dicts(self, dicts: list[dict[str, Any]]) -> int:
        """Update rows by primary key with the ORM's own statements: of several tables, and with a version counter.

        Raises:
            StaleDataError: A row does not exist, or has another version.
        """
        session, statement = self._transaction.session, update(self._target.entity)

        async def run(count: int) -> int:
            await session.execute(statement, dicts[:count])
            return count

        return await self._in_savepoint(range(len(dicts)), run)

    async def update(self, given: Group, key: Columns) -> int:
        """Update rows by key. Return the number of rows that were found."""
        plain, at_ends = RowsAtTheEnds.split(given, key)
        changed = await self._update_plain(plain, key)
        if not len(at_ends):
            return changed
        return changed + await self._write_rows(at_ends, RowsAtTheEnds.update(self._target, given.columns, key))

    async def upsert(self, given: Group, key: Columns, sets: Columns) -> int:
        """Insert rows and update existing rows. Return the number of rows that were written."""
        plain, at_ends = RowsAtTheEnds.split(given, key)
        written = await self._upsert_plain(plain, key, sets) if len(plain) else 0
        existing = RowsAtTheEnds.update_existing(self._target, given.columns, key, sets) if len(at_ends) else None
        for place in range(len(at_ends)):
            # The driver sends its key as infinity, which ON CONFLICT does not find in a row of 9999-12-31.
            row = at_ends.choose([place])
            found = await self._write_rows(row, existing) if existing is not None else 0
            written += (found if sets else 0) if found else await self._upsert_plain(row, key, sets)
        return written

    async def _upsert_plain(self, group: Group, key: Columns, sets: Columns) -> int:
        facts, target = self._facts, self._target
        expressions = eligibility.update_expressions(target, sets) if sets else {}
        takes_arrays = (
            facts is not None
            and facts.is_table
            and expressions is not None
            and not eligibility.needs_context(target, "default", group.columns)
            and eligibility.are_keys(key, facts, group)
            and not any(column.name in facts.generated for column in group.columns)
        )
        casts, arrays = self._arrays(group) if takes_arrays else ({}, [])
        if not casts:
            return await self._write_rows(group, RowByRow.upsert(target, group.columns, key, sets))
        sql = upsert_statement(target, casts, key, sets, expressions or {})
        return await self._send(group, sql, arrays, whole_rows=True)

    async def delete(self, given: Group, key: Columns) -> int:
        """Delete rows by key. Return the number of rows that were found."""
        plain, at_ends = RowsAtTheEnds.split(given, key)
        # `= ANY` would read a literal again for each row of a sequential scan.
        casts, arrays = self._arrays(plain, as_text=len(plain.columns) > 1)
        if casts:
            deleted = await self._send(plain, delete_statement(self._target, casts), arrays, whole_rows=False)
        else:
            deleted = await self._write_rows(plain, RowByRow.delete(self._target, key))
        if not len(at_ends):
            return deleted
        return deleted + await self._write_rows(at_ends, RowsAtTheEnds.delete(self._target, key))

    async def _update_plain(self, given: Group, key: Columns) -> int:
        facts, target = self._facts, self._target
        expressions = eligibility.update_expressions(target, given.columns)
        takes_arrays = (
            facts is not None
            and facts.is_table
            and expressions is not None
            and not eligibility.needs_context(target, "onupdate", given.columns)
            and eligibility.are_keys(key, facts, given)
        )
        group = fill_defaults(target, given, "onupdate") if takes_arrays else given
        casts, arrays = self._arrays(group) if takes_arrays else ({}, [])
        if not casts:
            return await self._write_rows(given, RowByRow.update(target, given.columns, key))
        sets = exclude(group.columns, key)
        sql = update_statement(target, casts, key, sets, expressions or {})
        return await self._send(group, sql, arrays, whole_rows=False)

    async def _copy(self, group: Group) -> None:
        arrays = [
            bind_values(column, values, group.positions)
            for column, values in zip(group.columns, group.values, strict=True)
        ]
        raw = await self._transaction.driver()

        async def copy() -> int:
            await raw.copy_records_to_table(
                self._target.table.name,
                schema_name=self._target.table.schema,
                columns=[column.name for column in group.columns],
                records=zip(*arrays, strict=True),
            )
            return len(group)

        await self._explained(group, copy, whole_rows=True)

    async def _send(self, group: Group, sql: str, arrays: list[Any], *, whole_rows: bool) -> int:
        """Execute one statement with an array for each column. Return the number of rows that it has written."""
        if not len(group):
            return 0
        raw = await self._transaction.driver()

        async def execute() -> int:
            status: str = await raw.execute(sql, *arrays)
            return int(status.rsplit(" ", 1)[-1])

        return await self._explained(group, execute, whole_rows=whole_rows)

    async def _write_rows(self, group: Group, statement: RowByRow) -> int:
        if not len(group):
            return 0
        raw = await self._transaction.driver()

        async def run(count: int) -> int:
            return await statement.execute(self._transaction.connection, raw, group.first(count))

        return await self._in_savepoint(group.positions, run)

    async def _explained(
        self, group: Group, run: Callable[[], Awaitable[int]], *, whole_rows: bool, adds_defaults: bool = False
    ) -> int:
        """Run a statement for a whole group. If a row causes a failure, raise `BulkError` for that row."""
        try:
            return await run()
        except STATEMENT_ERRORS as error:
            if classify(error) is ErrorKind.TRANSIENT:
                # The table may have been altered.
                eligibility.forget_facts(connection_info(self._transaction.connection))
            if isinstance(error, BulkError) or not blames_a_row(error):
                raise
            if adds_defaults and not eligibility.needs_context(self._target, "default", group.columns):
                group = fill_defaults(self._target, group, "default")
            found = await find_row(self._database, self._target, group, driver_error(error), whole_rows=whole_rows)
            raise make_error(self._target, error, found) from error

    async def _in_savepoint(self, positions: Sequence[int], run: Callable[[int], Awaitable[int]]) -> int:
        """Run SQLAlchemy's own statements in a savepoint, and find the row on which they fail.

        Args:
            positions: the position of each row in the list that the caller gave.
            run: takes a number, and executes the statements for that many rows from the first one.
        """
        raw = await self._transaction.driver()

        async def attempt(count: int, *, keep: bool) -> int:
            savepoint = raw.transaction()
            await savepoint.start()
            try:
                written = await run(count)
            except BaseException:
                await run_to_completion(roll_back(savepoint.rollback()))
                raise
            await (savepoint.commit() if keep else savepoint.rollback())
            return written

        async def fails(count: int) -> bool:
            try:
                await attempt(count, keep=False)
            except STATEMENT_ERRORS as error:
                return blames_a_row(error)
            return False

        try:
            return await attempt(len(positions), keep=True)
        except STATEMENT_ERRORS as error:
            if not blames_a_row(error):
                raise
            place = await find_first_failing(fails, len(positions))
            raise make_error(self._target, error, None if place is None else positions[place]) from error

    def _arrays(self, group: Group, *, as_text: bool = True) -> tuple[dict[Column[Any], str], list[Any]]:
        """Return the columns with the casts of their arrays, and the arrays; None if that is impossible."""
        facts = self._facts
        if facts is None or not facts.is_table:
            return {}, []
        casts = {column: eligibility.array_cast(column, facts) for column in group.columns}
        known = {column: cast for column, cast in casts.items() if cast is not None}
        if len(known) != len(casts):
            return {}, []
        arrays = [
            bind_values(column, values, group.positions)
            for column, values in zip(group.columns, group.values, strict=True)
        ]
        return encode_arrays(known, arrays, as_text=as_text)
