"""A batch: rows that are processed together, in one transaction with their checkpoint."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, overload

from worker.awaiting import track_awaits
from worker.batch.batch_keys import BatchKeys
from worker.batch.bulk.operations import Bulk
from worker.batch.transaction import BatchTransaction
from worker.db.sessions import ScopedSession
from worker.errors import UsageError

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Outcome(Generic[T, R]):
    """The outcome of a call for one row.

    Attributes:
        row: The row.
        row_key: The key that was passed to the call: the same at each attempt of the run.
        result: The returned value; None if the call raised.
        error: The exception; None if the call returned.
    """

    row: T
    row_key: str
    result: R | None = None
    error: Exception | None = None


@track_awaits("batch")
class Batch(Sequence[T_co], Generic[T_co]):
    """Rows of one transaction, in the order of the walk.

    Attributes:
        bulk: Bulk operations in the batch's transaction.
        number: 1 for the first batch of the loop. It names the place in the walk: a batch that is attempted again has
            the same number, but possibly fewer or more rows.
        first_key: The key of its first row (a tuple for a key of several columns); None for a stream without one.
        last_key: The key of its last row.
    """

    __slots__ = ("_keys", "_rows", "_transaction", "bulk", "first_key", "last_key", "number")

    def __init__(
        self,
        rows: Sequence[T_co],
        transaction: BatchTransaction,
        bulk: Bulk,
        *,
        number: int,
        first_key: Any,
        last_key: Any,
        keys: BatchKeys,
    ) -> None:
        self._rows = rows
        self._transaction = transaction
        self.bulk = bulk
        self.number = number
        self.first_key = first_key
        self.last_key = last_key
        self._keys = keys

    @property
    def session(self) -> ScopedSession:
        """The session of the batch's transaction; its writes are committed with the checkpoint."""
        return self._transaction.session

    @property
    def run_id(self) -> str:
        """The id of the run."""
        return self._keys.run_id

    @property
    def step(self) -> str:
        """The name of the loop's step in the ledger."""
        return self._keys.step

    async def driver(self) -> Any:
        """Return asyncpg's connection in the batch's transaction, for what neither session nor bulk can do."""
        return await self._transaction.driver()

    @property
    def idempotency_key(self) -> str:
        """The key of these rows, for one effect outside the database that concerns the whole batch.

        It is the same whenever the same rows are presented. If a batch is attempted again with fewer or more rows, it
        is another key, so that no service takes the new call for the old one. Calls that must not be repeated for any
        row need `row_keys`.
        """
        return self._keys.of_batch

    @property
    def row_keys(self) -> list[str]:
        """The key of each row, `<run>:<step>:<key>`, in the order of the rows: the same at each attempt, whatever
        batch the row is in.

        Raises:
            UsageError: The rows have no key.
        """
        keys = self._keys.of_rows
        if len(keys) != len(self):
            raise UsageError("batch.row_keys: these rows have no key: order the stream by a unique one")
        return keys

    async def gather(
        self,
        function: Callable[[T_co, str], Awaitable[R]],
        *,
        concurrency: int = 20,
        errors: Literal["raise", "collect"] = "raise",
    ) -> list[Outcome[T_co, R]]:
        """Run an async function for each row, such as an HTTP call, while no transaction is open. Write the outcomes
        afterwards, in the batch's transaction.

        Calls are made at least once: a batch that is attempted again makes them again, with the same keys.

        Args:
            function: Takes a row and its key `<run>:<step>:<key>`, which is the same at each attempt. Pass the key
                on, so that the receiver can recognise a repeated call.
            concurrency: The largest number of calls at the same time.
            errors: "raise" cancels all calls at the first error, which is the batch's error; "collect" puts errors
                into the outcomes.

        Returns:
            An `Outcome` for each row, in their order.

        Raises:
            UsageError: A transaction is open, or the rows have no key.
        """
        if self._transaction.is_open:
            raise UsageError(
                "batch.gather: a transaction is open, and would keep its locks until the slowest call has ended: walk "
                "with lock=False, and make the calls before the first write"
            )
        return await _gather_rows(function, self._rows, self.row_keys, concurrency=max(1, concurrency), errors=errors)

    @overload
    def __getitem__(self, index: int) -> T_co: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[T_co]: ...
    def __getitem__(self, index: int | slice) -> T_co | Sequence[T_co]:
        return self._rows[index]

    def __iter__(self) -> Iterator[T_co]:
        return iter(self._rows)  # the list's own iterator: the one of Sequence calls __getitem__ for each row

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"<Batch {self.number}: {len(self)} rows, keys {self.first_key!r} to {self.last_key!r}>"


def unwrap(key: Sequence[Any] | None) -> Any:
    """Return a key in the form that jobs get: the value of a single column, or a tuple for several columns."""
    if not key:
        return None
    return key[0] if len(key) == 1 else tuple(key)


async def _gather_rows(
    function: Callable[[T, str], Awaitable[R]],
    rows: Sequence[T],
    row_keys: Sequence[str],
    *,
    concurrency: int,
    errors: Literal["raise", "collect"],
) -> list[Outcome[T, R]]:
    """Call a function for each row, at most `concurrency` at a time; see `Batch.gather`."""
    found: list[Any] = [None] * len(rows)
    waiting = deque(enumerate(zip(rows, row_keys, strict=True)))

    async def work() -> None:
        while waiting:
            place, (row, key) = waiting.popleft()
            try:
                found[place] = Outcome[T, R](row, key, result=await function(row, key))
            except BaseException as error:
                if errors == "raise" or not isinstance(error, Exception):
                    waiting.clear()  # a call that swallows its cancellation is the last one of its task
                    raise
                found[place] = Outcome[T, R](row, key, error=error)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(rows))):
                group.create_task(work())
    except BaseExceptionGroup as failed:
        # Raise the first error only: the others come from the cancellation that it caused.
        raise failed.exceptions[0] from None
    return found
