"""A batch: rows that are done together, in one transaction with their checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

from worker.batch.bulk import Bulk
from worker.batch.transaction import Writer
from worker.db.scopes import ScopedSession

T_co = TypeVar("T_co", covariant=True)


class Batch(Sequence[T_co], Generic[T_co]):
    """Rows of one transaction, in the order of the walk.

    Attributes:
        bulk: bulk operations in that session.
        number: 1 for the first batch of the loop; the same when a batch is tried again.
        first_key: key of its first row (a tuple for a key of several columns); None for a stream without one.
        last_key: key of its last row.
        idempotency_key: the same at each try of this batch, for effects outside of the database.
    """

    __slots__ = ("_rows", "_transaction", "bulk", "first_key", "idempotency_key", "last_key", "number")

    def __init__(
        self,
        rows: Sequence[T_co],
        transaction: Writer,
        bulk: Bulk,
        *,
        number: int,
        first_key: Any,
        last_key: Any,
        idempotency_key: str,
    ) -> None:
        self._rows = rows
        self._transaction = transaction
        self.bulk = bulk
        self.number = number
        self.first_key = first_key
        self.last_key = last_key
        self.idempotency_key = idempotency_key

    @property
    def session(self) -> ScopedSession:
        """Session of the batch's transaction; its writes are committed with the checkpoint."""
        return self._transaction.session

    @overload
    def __getitem__(self, index: int) -> T_co: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T_co]: ...
    def __getitem__(self, index: int | slice) -> T_co | Sequence[T_co]:
        return self._rows[index]

    def __iter__(self) -> Iterator[T_co]:
        return iter(self._rows)  # the rows' own iterator: that of Sequence asks for one after the other

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<Batch {self.number}: {len(self)} rows, keys {self.first_key!r} to {self.last_key!r}>"


def unwrap(key: Sequence[Any] | None) -> Any:
    """Return a key as a job sees it: the value of a single column, the tuple of several."""
    if key is None:
        return None
    return key[0] if len(key) == 1 else tuple(key)
