"""`ctx.chunks`: rows of a table by key, a transaction a batch, locked while the job changes them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from sqlalchemy import Select
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.batch.keyset_select import KeysetSelect
from worker.batch.page import PageReader
from worker.batch.source import Bounds, OpenStep, Page
from worker.batch.transaction import BatchTransaction
from worker.batch.walk_statements import WalkStatements
from worker.errors import UnsupportedStatement
from worker.ledger.records import RangeBounds

#: Consecutive reads that find keys but no readable row, after which the walk fails.
_MAX_EMPTY_READS = 20
_EMPTY_READ_PAUSE_SECONDS = 0.02


class ChunksSource:
    """The rows of a select in the order of a key; see `JobContext.chunks`.

    Args:
        statement: The select.
        by: The key; None for the primary key.
        lock: Whether the rows are locked until the batch is committed.
        allow_sort: Whether each batch may sort the rest of the table.
        vouched: Whether the key of a view or a foreign table counts as unique and not null.
    """

    kind = "chunks"

    def __init__(
        self,
        statement: Select[Any],
        *,
        by: Any = None,
        lock: bool = True,
        allow_sort: bool = False,
        vouched: bool = False,
    ) -> None:
        self._select = KeysetSelect(statement, by=by, lock=lock, allow_sort=allow_sort, vouched=vouched)
        self._lock = lock
        self._empty_reads = 0

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the statement: it changes if the walk would have other rows."""
        return self._select.fingerprint

    @property
    def text(self) -> str:
        """The whole statement, without its values."""
        return self._select.text

    async def open(self, step: OpenStep) -> Bounds:
        """Check the key, look the bounds up, and compile the statements."""
        bounds = await self._select.open(step)
        self._dialect = step.connection.dialect
        self._compile()
        return bounds

    def _compile(self) -> None:
        self._first = PageReader(self._select.shape, self._select.batch(resumed=False), self._dialect)
        self._next = PageReader(self._select.shape, self._select.batch(resumed=True), self._dialect)

    async def fetch(self, transaction: BatchTransaction, cursor: Any, size: int) -> Page[Any] | None:
        """Return the next rows, locked."""
        reader = self._first if cursor is None else self._next
        page = await reader.read(transaction, self._select.window(cursor, size))
        if not page.rows:
            return await self._read_nothing(transaction, cursor)
        self._empty_reads = 0
        if not self._lock:
            # The read ends before the body runs: no transaction is open until the body's first own statement.
            await transaction.end_read()
        share = self._select.share(page.cursor)
        return replace(page, share=share, is_last=page.cursor == self._select.last, examined=size)

    async def split(self, connection: AsyncConnection, cursor: Any, count: int, size: int) -> list[RangeBounds]:
        """Return ranges with the same number of rows; see `RangedSource`."""
        return await self._select.split(connection, cursor, count, size)

    def enter_range(self, last: list[Any], condition: str | None) -> None:
        """Let the walk return the keys of one range; see `RangedSource`."""
        if self._select.enter_range(last, condition):
            self._compile()

    def describe(self, size: int) -> WalkStatements:
        """Return the statements of the first batch; see `DescribedSource`."""
        return self._select.describe(size)

    async def list_keys(self, transaction: BatchTransaction, cursor: Any, size: int) -> list[list[Any]]:
        """Return the keys of the next rows, without reading the rows."""
        return await self._select.list_keys(transaction, cursor, size)

    async def find_unreadable(
        self, transaction: BatchTransaction, cursor: Any, blames_row: Callable[[Exception], bool]
    ) -> Page[Any] | None:
        """Return a page that passes over the next row, if it cannot be read; see `KeyedSource`."""
        return await self._select.find_unreadable(transaction, cursor, blames_row)

    async def _read_nothing(self, transaction: BatchTransaction, cursor: Any) -> Page[Any] | None:
        """Return None if no key remains, else a page for another attempt.

        If keys remain, other sessions have changed the rows between the choice of the keys and the lock; a new snapshot
        reads the current rows. Or the rows cannot be locked at all, and more attempts do not help.
        """
        left = await self._select.list_keys(transaction, cursor, 1)
        await transaction.roll_back()
        if not left:
            return None
        self._empty_reads += 1
        if self._empty_reads > _MAX_EMPTY_READS:
            raise UnsupportedStatement(
                f"chunks: table {self._select.keyset.table.fullname} has keys behind {cursor}, but {_MAX_EMPTY_READS} "
                f"attempts to lock their rows have found none. If the table has row-level security, its policy for "
                f"writing must admit the rows that its policy for reading shows; or set lock=False"
            )
        await asyncio.sleep(_EMPTY_READ_PAUSE_SECONDS)
        return Page()

    async def close(self) -> None:
        """Do nothing: the source holds no resources between two batches."""
