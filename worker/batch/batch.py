"""A batch: rows that are done together, in one transaction with their checkpoint."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Generic, Literal, TypeVar, overload

from worker.batch.bulk import Bulk
from worker.batch.gather import Outcome, gather_rows
from worker.batch.transaction import BatchTransaction
from worker.db.sessions import ScopedSession
from worker.errors import UsageError

T_co = TypeVar("T_co", covariant=True)
R = TypeVar("R")


class Batch(Sequence[T_co], Generic[T_co]):
    """Rows of one transaction, in the order of the walk.

    Attributes:
        bulk: bulk operations in that session.
        number: 1 for the first batch of the loop; the same when a batch is tried again.
        first_key: key of its first row (a tuple for a key of several columns); None for a stream without one.
        last_key: key of its last row.
        idempotency_key: the same at each try of this batch, for effects outside of the database.
    """

    __slots__ = ("_row_keys", "_rows", "_transaction", "bulk", "first_key", "idempotency_key", "last_key", "number")

    def __init__(
        self,
        rows: Sequence[T_co],
        transaction: BatchTransaction,
        bulk: Bulk,
        *,
        number: int,
        first_key: Any,
        last_key: Any,
        idempotency_key: str,
        row_keys: Callable[[], Sequence[str]],
    ) -> None:
        self._rows = rows
        self._transaction = transaction
        self.bulk = bulk
        self.number = number
        self.first_key = first_key
        self.last_key = last_key
        self.idempotency_key = idempotency_key
        self._row_keys = row_keys

    @property
    def session(self) -> ScopedSession:
        """Session of the batch's transaction; its writes are committed with the checkpoint."""
        return self._transaction.session

    async def gather(
        self,
        function: Callable[[T_co, str], Awaitable[R]],
        *,
        concurrency: int = 20,
        errors: Literal["raise", "collect"] = "raise",
    ) -> list[Outcome[T_co, R]]:
        """Run an async function for each row: an HTTP call, a file, a model. What is to be written follows, in the
        batch's transaction.

        Calls are at least once: a batch that is tried again makes them again, with the same keys.

        Args:
            function: takes a row and its key: `<run>:<step>:<key>`, the same at each try, for the other side to know
                the call by.
            concurrency: calls at the same time, at most.
            errors: "raise" ends all at the first error, which is the batch's; "collect" leaves them in the outcomes.

        Returns:
            An `Outcome` for each row, in their order.

        Raises:
            UsageError: a transaction is open, or the rows have no key.
        """
        if self._transaction.is_open:
            raise UsageError(
                "batch.gather: a transaction is open, and would stay open, with its locks, as long as the slowest call "
                "takes: walk with lock=False, and call out before anything is written"
            )
        keys = self._row_keys()
        if len(keys) != len(self):
            raise UsageError("batch.gather: these rows have no key: order the stream by a unique one")
        return await gather_rows(function, self._rows, keys, concurrency=max(1, concurrency), errors=errors)

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
    if not key:
        return None
    return key[0] if len(key) == 1 else tuple(key)
