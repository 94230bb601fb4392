"""The protocol of the sources of a walk: tables, streams, files, the pages of an API, or your own sources.

A source produces pages. It does not handle commits, retries, quarantine, sizes or progress: those belong to
`worker.batch.walk.Walk`, the one engine of all loops. `ctx.walk(source)` walks a source of your own.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from worker.batch.selection import Selection
from worker.batch.transaction import BatchTransaction
from worker.settings import Settings

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
        count_exactly: Whether to count the total instead of estimating it (`count="exact"`).
        only_keys: Keys of quarantined rows, to which the walk is restricted; None for a walk over everything.
        share: The part of the walk that earlier attempts have processed, from 0 to 1.
        connection: The run's own connection, in a transaction that the walk ends. Use it to read the bounds.
        skipped: The locked rows that a walk with `skip_locked=True` has skipped.
        settings: The worker's settings.
        selection: The part of the walk that an operator has selected; None for all of it.
        is_trial: Whether the batches are rolled back (`worker try`): the source must change nothing.
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
    settings: Settings
    selection: Selection | None = None
    is_trial: bool = False


@dataclass(frozen=True)
class Bounds:
    """The bounds of a walk, which a source returns when it is opened.

    Attributes:
        key: Column, type and direction of each part of the cursor. If they differ from those in the ledger, the walk
            fails with `CursorMismatch`.
        last: The cursor of the last row, read when the step is new, so that the walk ends. A JSON value.
        total: The number of rows, or an estimate; None if it is unknown.
        is_empty: Whether there is nothing to walk.
        is_resumable: Whether a restart can continue behind the cursor. If not, it begins with the first row.
        table: The name of the table for throttles, in SQL.
        row_bytes: The size of a row in bytes; None if it is unknown before the first page.
        begins_in_transaction: Whether `fetch` or `Page.change` soon sends a statement in the batch's transaction, which
            then begins in the statement that commits the batch before.
    """

    key: list[list[str]] = field(default_factory=list)
    last: Any = None
    total: int | None = None
    is_empty: bool = False
    is_resumable: bool = True
    table: str = ""
    row_bytes: float | None = None
    begins_in_transaction: bool = False


@dataclass(frozen=True)
class RejectedRow:
    """A row that the source cannot hand to the job, such as a line of a file that cannot be parsed.

    Attributes:
        key: Its key as JSON values, in the form of `Page.row_keys`.
        error: The reason. If the walk has no quarantine, it is raised.
        row: The row in the form that can be shown, for the quarantine.
    """

    key: list[Any]
    error: Exception
    row: Any


@dataclass(frozen=True)
class Page(Generic[T_co]):
    """The rows of one batch.

    A page without rows is not handed to the job: the walk commits its cursor, if it has one, and fetches again.

    Attributes:
        rows: The rows, in the form that the job gets.
        cursor: The place behind the last row, as a JSON value that `fetch` gets back; None leaves the cursor as it is.
        first_key: The key of the first row, in Python's types; empty if there is none.
        last_key: The key of the last row.
        row_keys: Returns the key of each row as JSON values. `batch.gather` and the quarantine need it.
        share: The part of the walk that is done after this page, from 0 to 1; None to go by rows and total.
        is_last: True if no page follows; False if that is unknown.
        examined: The number of rows that were examined, if not all of them are in `rows`: it determines the batch size.
        check: Called before the batch is committed; raises an error to prevent the commit.
        change: Run by the walk in the batch's transaction, instead of a loop's body. Returns the number of rows done.
        rejected: Rows that cannot be handed to the job. They are quarantined with the batch; without a quarantine, the
            walk fails before the job gets `rows`.
        after_commit: Called after the batch was committed, such as to acknowledge its rows elsewhere. It is not called
            if the worker dies right after the commit.
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
    rejected: Sequence[RejectedRow] = ()
    after_commit: Callable[[], Awaitable[None]] | None = None


class Source(Protocol[T_co]):
    """A sequence of rows with a cursor.

    Attributes:
        kind: One word for the kind of walk, such as "csv". It is part of the step's default name.
        fingerprint: A text that distinguishes this walk from others, such as its statement or path. If the step in the
            ledger has another fingerprint, the walk fails with `CursorMismatch`.
    """

    @property
    def kind(self) -> str: ...

    @property
    def fingerprint(self) -> str: ...

    async def open(self, step: OpenStep) -> Bounds:
        """Prepare the walk.

        It is not called for a step that has ended.

        Args:
            step: The step in the ledger.

        Returns:
            The bounds of the walk.

        Raises:
            UnsupportedStatement: The source cannot be walked.
            CursorMismatch: The rows before the cursor have changed.
        """

    async def fetch(self, transaction: BatchTransaction, cursor: Any, size: int) -> Page[T_co] | None:
        """Return the page behind a cursor.

        The call is made again with the same cursor if the batch fails. If the call itself has failed, the source is
        closed before, and opened again at the cursor, unless it can be divided into ranges.

        Args:
            transaction: The transaction of the batch. Use `transaction.session` or `await transaction.driver()` to
                read in it.
            cursor: `Page.cursor` of the last committed page; None before the first one.
            size: The number of rows, at most.

        Returns:
            The page; None at the end of the walk.
        """

    async def close(self) -> None:
        """Release the resources of `open`.

        It is called at the end of the walk, however that ends, even if `open` has failed; and before `open` is called
        again at the cursor, after a fetch has failed by an error that passes.
        """


class SkippedRows(Protocol):
    """Rows that other sessions had locked when the walk reached them, stored in the ledger."""

    async def remember(self, raw: Any, keys: list[list[Any]]) -> None:
        """Store keys in the transaction that `raw` has open."""

    async def list(self, raw: Any, limit: int) -> dict[int, Any]:
        """Return stored keys by their number."""

    async def forget(self, raw: Any, ids: Sequence[int]) -> None:
        """Delete stored keys in the transaction that `raw` has open."""
