"""`ctx.chunks(..., skip_locked=True)`: rows that somebody else has locked are left for a second visit, before the end.

Which rows those are is in the ledger, written with the cursor that moves past them. The second visit begins when the
walk has reached its last key; what is locked even then is waited for.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, TypeVar

from worker.batch.chunks import Chunks
from worker.batch.compiled import CompiledStatement
from worker.batch.keyset import SIZE
from worker.batch.page import NO_PAGE, Page, RowShape
from worker.batch.page_reader import PageReader
from worker.batch.transaction import BatchTransaction

T = TypeVar("T")


class SkippingChunks(Chunks[T]):
    """A walk that waits for no lock before its end."""

    #: Keys of the open batch that were locked.
    _skipped: list[list[Any]]
    #: What the open batch makes up for, as the ledger numbers it.
    _made_up: list[int]

    def _make_readers(self, shape: RowShape, dialect: Any) -> None:
        self._skipped, self._made_up = [], []
        columns, keyset = self._keyset.cursor_columns, self._keyset
        keys = self._keys(columns).where(keyset.up_to()).limit(SIZE)
        self._first_keys = CompiledStatement(keys, dialect)
        self._next_keys = CompiledStatement(keys.where(keyset.after()), dialect)
        upto = shape.statement.where(keyset.up_to("last"))
        self._first = PageReader(shape, self._locked(upto, skip_locked=True), dialect)
        self._next = PageReader(shape, self._locked(upto.where(keyset.after()), skip_locked=True), dialect)
        again = shape.statement.where(keyset.one_of())
        self._free = PageReader(shape, self._locked(again, skip_locked=True), dialect)
        self._waited_for = PageReader(shape, self._locked(again), dialect)

    async def _read_page(self, transaction: BatchTransaction) -> Page:
        raw = await transaction.driver()
        begun = self.step.cursor is not None
        sql, arguments = (self._next_keys if begun else self._first_keys).bind(self._values())
        width = len(self._keyset.parts)
        keys = [self._keyset.encode(row[:width]) for row in await raw.fetch(sql, *arguments)]
        if not keys:
            return await self._second_visit(transaction)
        values = self._keyset.values("last", self._keyset.decode(keys[-1])) | self._behind()
        page = await (self._next if begun else self._first).read(transaction, values)
        got = {json.dumps(key) for key in page.row_cursors()}
        self._skipped = [key for key in keys if json.dumps(key) not in got]
        self._page = replace(page, cursor=keys[-1])
        return self._page

    async def _second_visit(self, transaction: BatchTransaction) -> Page:
        """Return rows that were skipped; those that are still locked only when there are no others."""
        known = await self.run.checkpoints.list_skipped(await transaction.driver(), self.step, self.size)
        if not known:
            return NO_PAGE
        values: dict[str, Any] = self._keyset.values_of(list(known.values()))
        page = await self._free.read(transaction, values)
        if page.rows:
            got = {json.dumps(key) for key in page.row_cursors()}
            self._made_up = [id_ for id_, key in known.items() if json.dumps(key) in got]
        else:
            page = await self._waited_for.read(transaction, values)
            self._made_up = list(known)  # with those that are gone, or match no longer
        return replace(page, cursor=[])

    async def _write_along(self, transaction: BatchTransaction) -> None:
        await super()._write_along(transaction)
        raw = await transaction.driver()
        skipped, self._skipped = self._skipped, []
        if skipped:
            await self.run.checkpoints.add_skipped(raw, self.step, skipped)
        made_up, self._made_up = self._made_up, []
        if made_up:
            await self.run.checkpoints.delete_skipped(raw, made_up)

    async def _ends_here(self, transaction: BatchTransaction) -> bool:
        if self._skipped or self._made_up:
            await self.commit()  # all of them are locked, or gone
            return False
        await transaction.roll_back()
        self._transaction = None
        return True

    def _is_last(self) -> bool:
        return False  # there may be rows to come back for
