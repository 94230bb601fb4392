"""The protocol of what a walk can go over: tables, streams, files, the pages of an API, sources of your own.

A source produces pages. It knows nothing of commits, retries, quarantine, sizes or progress: those belong to
`worker.batch.walk.Walk`, the one engine of all loops. `ctx.walk(source)` walks a source of your own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from worker.batch.transaction import BatchTransaction

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True)
class OpenStep:
    """The step of the ledger that a source is opened for.

    Attributes:
        run_id: The id of the run.
        name: The name of the step.
        cursor: The cursor of the last committed batch; None before the first one.
        last: The upper bound that the source returned when the step was new.
        is_new: Whether no earlier attempt has opened the step. Only then are `Bounds.last` and `Bounds.total` stored.
        count_exactly: Whether the total is to be counted rather than estimated (`count="exact"`).
        only_keys: Keys of quarantined rows, to which the walk is restricted; None for a walk over everything.
        share: The part of the walk that earlier attempts have done, from 0 to 1.
        connection: The run's own connection, in a transaction that the walk ends. Use it to look bounds up.
        skipped: Rows that a walk with `skip_locked=True` comes back for.
    """

    run_id: str
    name: str
    cursor: Any
    last: Any
    is_new: bool
    count_exactly: bool
    only_keys: list[list[Any]] | None
    share: float
    connection: AsyncConnection
    skipped: SkippedRows


@dataclass(frozen=True)
class Bounds:
    """What a source knows about its walk once it is open.

    Attributes:
        key: Column, type and direction of each part of the cursor. If they differ from those in the ledger, the walk
            fails with `CursorMismatch`.
        last: The cursor of the last row, taken when the step is new, so that the walk ends. A JSON value.
        total: The number of rows, or an estimate; None if it is unknown.
        is_empty: Whether there is nothing to walk.
        is_resumable: Whether a restart can continue behind the cursor. If not, it begins with the first row.
        table: The name of the table for throttles, as SQL spells it.
        row_bytes: The weight of a row in bytes; None if it is unknown before the first page.
    """

    key: list[list[str]] = field(default_factory=list)
    last: Any = None
    total: int | None = None
    is_empty: bool = False
    is_resumable: bool = True
    table: str = ""
    row_bytes: float | None = None


@dataclass(frozen=True)
class Page(Generic[T_co]):
    """The rows of one batch.

    A page without rows is not handed to the job: the walk commits its cursor, if it has one, and fetches again.

    Attributes:
        rows: The rows, as the job sees them.
        cursor: The place behind the last row, as a JSON value that `fetch` gets back; None leaves the cursor as it is.
        first_key: The key of the first row, in Python's types; empty if there is none.
        last_key: The key of the last row.
        row_keys: Returns the key of each row as JSON values. `batch.gather` and the quarantine need it.
        share: The part of the walk that is done after this page, from 0 to 1; None to go by rows and total.
        is_last: Whether the source knows that no page follows.
        examined: The number of rows that were looked at, if not all of them are in `rows`: the batch size follows it.
        check: Called before the batch is committed; raises an error to refuse that.
        change: Run by the walk in the batch's transaction, instead of a loop's body. Returns the number of rows done.
    """

    rows: Sequence[T_co] = ()
    cursor: Any = None
    first_key: Sequence[Any] = ()
    last_key: Sequence[Any] = ()
    row_keys: Callable[[], list[Any]] = list
    share: float | None = None
    is_last: bool = False
    examined: int = 0
    check: Callable[[], None] | None = None
    change: Callable[[BatchTransaction], Awaitable[int]] | None = None


class Source(Protocol[T_co]):
    """A sequence of rows with a cursor.

    Attributes:
        kind: One word for the kind of walk, such as "csv". It is part of the step's default name.
        fingerprint: A text that tells this walk from another one, such as its statement or path. A step that the
            ledger knows with another fingerprint fails with `CursorMismatch`.
    """

    @property
    def kind(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    async def open(self, step: OpenStep) -> Bounds:
        """Prepare the walk.

        It is not called for a step that has ended.

        Args:
            step: The step as the ledger knows it.

        Returns:
            The bounds of the walk.

        Raises:
            UnsupportedStatement: The source cannot be walked.
            CursorMismatch: The rows behind which the walk was to continue have changed.
        """

    async def fetch(self, transaction: BatchTransaction, cursor: Any, size: int) -> Page[T_co] | None:
        """Return the page behind a cursor.

        The call is made again with the same cursor if the batch fails.

        Args:
            transaction: The transaction of the batch. Use `transaction.session` or `await transaction.driver()` to
                read in it.
            cursor: `Page.cursor` of the last committed page; None before the first one.
            size: The number of rows, at most.

        Returns:
            The page; None at the end of the walk.
        """

    async def close(self) -> None:
        """Release what `open` has acquired. It is called once, however the walk ends, also if `open` has failed."""


class SkippedRows(Protocol):
    """Rows that were locked by others when the walk came to them, kept in the ledger."""

    async def remember(self, raw: Any, keys: list[list[Any]]) -> None:
        """Store keys in the transaction that `raw` has open."""

    async def list(self, raw: Any, limit: int) -> dict[int, Any]:
        """Return stored keys by their number."""

    async def forget(self, raw: Any, ids: Sequence[int]) -> None:
        """Delete stored keys in the transaction that `raw` has open."""
