"""`ctx.chunks`: rows by key, a transaction a batch, locked while the job changes them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any, Generic, TypeVar

from sqlalchemy import ARRAY, Select, any_, func, tuple_

from worker.batch.batch import Batch
from worker.batch.batch_retry import OnError
from worker.batch.catalog import checked_key, sql_text
from worker.batch.key_choice import entity_of, key_of_select, refuse_unwalkable
from worker.batch.keyset import SIZE, Keyset
from worker.batch.loop_exit import LoopIterator, OnlyAsyncFor, caller
from worker.batch.options import Count
from worker.batch.page import Page, RowShape
from worker.batch.page_reader import PageReader
from worker.batch.sizing import Size
from worker.batch.transaction import BatchTransaction
from worker.batch.walk import Walk, WalkHost
from worker.ledger import StepRecord

T = TypeVar("T")


class Chunks(OnlyAsyncFor, Walk, Generic[T]):
    """An `async for` over batches of rows; see `JobContext.chunks`."""

    kind = "chunks"

    def __init__(
        self,
        host: WalkHost,
        statement: Select[Any],
        *,
        size: Size | None,
        lock: bool,
        by: Any,
        name: str | None,
        count: Count,
        on_error: OnError,
        quarantine_limit: float,
    ) -> None:
        super().__init__(host, name=name, size=size, count=count)
        self.quarantine_limit = quarantine_limit if on_error == "quarantine" else 0
        refuse_unwalkable(statement, kind=self.kind)
        self._lock = lock
        self._statement = statement
        self._keyset: Keyset = key_of_select(statement, by, kind=self.kind)

    def __aiter__(self) -> AsyncIterator[Batch[T]]:
        iterator = LoopIterator[Batch[T]](self, caller())
        self.hold(iterator)
        return iterator

    async def _open(self, name: str) -> StepRecord:
        connection = self.run.connection
        spec = self.spec(name, sql_text(self._statement), self._keyset)
        step = self.run.checkpoints.find_step(spec)
        if step is not None and step.done:
            return step
        keyset = self._keyset = await checked_key(connection, self._keyset, kind=self.kind)
        if self.run.spec.only is not None:
            self._statement = self._statement.where(keyset.among(await self.run.quarantine.list_retried_keys()))
        if step is None:
            last = self._keys(keyset.cursor_columns, reverse=True).limit(1)
            upper = (await connection.execute(last)).one_or_none()
            total = 0 if upper is None else await self._total(connection, self._keys(keyset.columns))
            step = await self.run.checkpoints.open_step(
                spec,
                upper_bound=None if upper is None else keyset.encode(upper[: len(keyset.parts)]),
                total=total,
                done=upper is None,
            )
        if step.upper_bound is not None:
            self._upper = keyset.decode(step.upper_bound)
        self._make_readers(RowShape(self._statement, keyset), connection.dialect)
        return step

    def _make_readers(self, shape: RowShape, dialect: Any) -> None:
        self._first = PageReader(shape, self._read(shape, resumed=False), dialect)
        self._next = PageReader(shape, self._read(shape, resumed=True), dialect)

    async def next_batch(self) -> Batch[T] | None:
        """Commit the batch before, obey orders, read the next one; None at the end of the walk."""
        if self._step is None:
            if not await self.begin():
                return None
        else:
            await self.commit(done=self._is_last())
        if self.step.done:
            self.end()
            return None
        await self._host.boundary(resumable=True, table=self.table)
        while True:
            transaction = self.open_batch()
            page = await self._read_page(transaction)
            if await self.set_row_aside(page):
                if self._is_last():
                    await self.mark_done()
                    self.end()
                    return None
                continue
            if page.rows:
                break
            if await self._ends_here(transaction):
                await self.mark_done()
                self.end()
                return None
        batch: Batch[T] = self.batch(page)
        await self.refuse_deadly_batch(page, len(page.rows))
        if not self._lock:
            # The read is over before the body runs: it holds no transaction until its first own statement.
            await transaction.end_read()
        return batch

    async def _read_page(self, transaction: BatchTransaction) -> Page:
        """Return the next rows."""
        return await (self._first if self.step.cursor is None else self._next).read(transaction, self._values())

    async def _ends_here(self, transaction: BatchTransaction) -> bool:
        """Tell what it means that no rows came back, and end the transaction.

        At the end of the walk there are no keys either; else they were changed by others between the choice of the
        rows and their lock, and a new snapshot sees them as they are.
        """
        values = {name: value for name, value in self._values().items() if name != SIZE.key}
        more = await transaction.session.execute(self._remaining().limit(1), values)
        end = more.one_or_none() is None
        await transaction.roll_back()
        self._transaction = None
        return end

    def _is_last(self) -> bool:
        """Whether the open batch is known to be the last."""
        return bool(self._page.cursor) and self._page.cursor == self.step.upper_bound

    def _keys(self, columns: Sequence[Any], *, reverse: bool = False) -> Select[Any]:
        """Return the keys that the statement has, in the order of the walk."""
        key = self._keyset.columns
        if not _has_joins(self._statement):
            keys = self._statement.with_only_columns(*columns, maintain_column_froms=True)
        else:
            # A join can repeat a row of the walked table: a batch must not end between its repetitions. DISTINCT
            # wants what it orders by among its columns.
            more = [column for column in key if not any(column is other for other in columns)]
            keys = self._statement.with_only_columns(*columns, *more, maintain_column_froms=True).distinct()
        return keys.order_by(*self._keyset.order_by(reverse=reverse))

    def _remaining(self, *, resumed: bool | None = None) -> Select[Any]:
        resumed = self.step.cursor is not None if resumed is None else resumed
        keys = self._keys(self._keyset.columns).where(self._keyset.up_to())
        return keys.where(self._keyset.after()) if resumed else keys

    def _read(self, shape: RowShape, *, resumed: bool) -> Select[Any]:
        """Return the statement that reads a batch.

        The keys of a batch are chosen by a subquery that PostgreSQL runs once, under the statement's snapshot;
        the rows are then found by them. ORDER BY with LIMIT straight above FOR UPDATE would do as well, until
        somebody moves a row's key while we wait for its lock: the row comes back with its new key, in its old
        place, and as the last one it would propagate the cursor past rows that were never read. Here such a row
        fails the recheck of its key and is dropped, as the promise has it ("may be done or not").
        """
        columns = self._keyset.columns
        chosen = self._remaining(resumed=resumed).limit(SIZE).correlate(None)
        if len(columns) == 1:
            array = func.array(chosen.scalar_subquery(), type_=ARRAY(self._keyset.parts[0].column.type))
            condition = columns[0] == any_(array)
        else:
            condition = tuple_(*columns).in_(chosen)
        return self._locked(shape.statement.where(condition))

    def _locked(self, read: Select[Any], *, skip_locked: bool = False) -> Select[Any]:
        """Return a select of rows in the order of the walk, which locks them where that is asked for."""
        read = read.order_by(*self._keyset.order_by())
        if not self._lock:
            return read
        entity = entity_of(self._statement)
        of = entity if entity is not None else self._keyset.parts[0].expression.table
        return read.with_for_update(of=of, key_share=True, skip_locked=skip_locked)


def _has_joins(statement: Select[Any]) -> bool:
    froms = statement.get_final_froms()
    return len(froms) > 1 or any(hasattr(item, "onclause") for item in froms)
