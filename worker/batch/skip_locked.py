"""`ctx.chunks(..., skip_locked=True)`: locked rows are skipped, and processed in a second pass before the end.

Their keys are in the ledger, written in the transaction that moves the cursor past them. The second pass begins when
the walk has reached its last key. It waits for rows that are still locked.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from sqlalchemy import Select

from worker.batch.compiled import CompiledStatement
from worker.batch.keyset_select import KeysetSelect
from worker.batch.page import PageReader
from worker.batch.source import Bounds, OpenStep, Page, SkippedRows
from worker.batch.transaction import BatchTransaction
from worker.batch.walk_statements import WalkStatements


class SkipLockedSource:
    """The rows of a select in the order of a key, without a wait for locks before the end of the walk.

    Args:
        statement: The select.
        by: The key; None for the primary key.
        allow_sort: Whether each batch may sort the rest of the table.
    """

    kind = "chunks"

    def __init__(self, statement: Select[Any], *, by: Any = None, allow_sort: bool = False) -> None:
        self._select = KeysetSelect(statement, by=by, lock=True, allow_sort=allow_sort)

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
        self._ledger: SkippedRows = step.skipped
        dialect, keyset, shape = step.connection.dialect, self._select.keyset, self._select.shape
        locked = self._select.locked
        self._first_keys, self._next_keys = (
            CompiledStatement(self._select.next_keys(resumed=resumed), dialect) for resumed in (False, True)
        )
        upto = shape.statement.where(keyset.up_to("last"))
        self._first = PageReader(shape, locked(upto, skip_locked=True), dialect)
        self._next = PageReader(shape, locked(upto.where(keyset.after()), skip_locked=True), dialect)
        again = shape.statement.where(keyset.one_of())
        self._free = PageReader(shape, locked(again, skip_locked=True), dialect)
        self._waiting = PageReader(shape, locked(again), dialect)
        return bounds

    def describe(self, size: int) -> WalkStatements:
        """Return the statements of the first batch; see `DescribedSource`."""
        return self._select.describe(size)

    async def fetch(self, transaction: BatchTransaction, cursor: Any, size: int) -> Page[Any] | None:
        """Return the next unlocked rows, and store the keys of the locked ones."""
        keyset = self._select.keyset
        keys = await self.list_keys(transaction, cursor, size)
        if not keys:
            return await self._fetch_skipped(transaction, size)
        values = keyset.values("last", keyset.decode(keys[-1])) | self._select.behind(cursor)
        page = await (self._first if cursor is None else self._next).read(transaction, values)
        got = {json.dumps(key) for key in page.row_keys()}
        if not got <= {json.dumps(key) for key in keys}:
            await transaction.roll_back()  # a key's text changed between the two statements: read again
            return Page()
        skipped = [key for key in keys if json.dumps(key) not in got]
        if skipped:
            await self._ledger.remember(await transaction.driver(), skipped)
        return replace(page, cursor=keys[-1], share=self._select.share(keys[-1]), examined=size)

    async def list_keys(self, transaction: BatchTransaction, cursor: Any, size: int) -> list[list[Any]]:
        """Return the keys of the next rows, locked ones too, without reading the rows."""
        raw = await transaction.driver()
        keys = self._first_keys if cursor is None else self._next_keys
        sql, arguments = keys.bind(self._select.window(cursor, size))
        keyset = self._select.keyset
        return [keyset.encode(row[: len(keyset.parts)]) for row in await raw.fetch(sql, *arguments)]

    async def find_unreadable(
        self, transaction: BatchTransaction, cursor: Any, blames_row: Callable[[Exception], bool]
    ) -> Page[Any] | None:
        """Return a page that passes over the next row, if it cannot be read; see `KeyedSource`."""
        if await self.list_keys(transaction, cursor, 1):
            return await self._select.find_unreadable(transaction, cursor, blames_row)
        raw = await transaction.driver()
        for id_, key in (await self._ledger.list(raw, 1)).items():
            if await self._select.is_unreadable(transaction, key, blames_row):
                await self._ledger.forget(raw, [id_])
                return Page(first_key=key, last_key=key, row_keys=partial(list, [key]), share=1.0)
        return None

    async def _fetch_skipped(self, transaction: BatchTransaction, size: int) -> Page[Any] | None:
        """Return skipped rows. Wait for locked rows only if no unlocked rows remain."""
        known = await self._ledger.list(await transaction.driver(), size)
        if not known:
            return None
        values: dict[str, Any] = self._select.keyset.array_values(list(known.values()))
        page = await self._free.read(transaction, values)
        if page.rows:
            got = {json.dumps(key) for key in page.row_keys()}
            done = [id_ for id_, key in known.items() if json.dumps(key) in got]
            if not got <= {json.dumps(key) for key in known.values()}:
                page, done = await self._fetch_one_skipped(transaction, known)
        else:
            page = await self._waiting.read(transaction, values)
            done = list(known)  # including rows that were deleted or no longer match
        if done:
            await self._ledger.forget(await transaction.driver(), done)
        return replace(page, cursor=None, share=1.0, examined=size)

    async def _fetch_one_skipped(
        self, transaction: BatchTransaction, known: dict[int, Any]
    ) -> tuple[Page[Any], list[int]]:
        """Return one row and its stored key, if equal keys are spelled in several ways, such as 1.0 and 1.00."""
        for id_, key in known.items():
            page = await self._free.read(transaction, self._select.keyset.array_values([key]))
            if page.rows:
                return page, [id_]
        return Page(), []

    async def close(self) -> None:
        """Do nothing: the source holds no resources between two batches."""
