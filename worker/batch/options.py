"""The options of the loops, written once: `JobContext`, the walk and the sources share them.

Each option has its default and its meaning here. Pass them by keyword, such as `ctx.chunks(select(User), size=1_000)`.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from worker.batch.batch_retry import OnError
from worker.batch.ranges import OnHandError
from worker.batch.sizing import Size

#: How a walk determines its number of rows: by the planner's statistics, or by counting.
Count = Literal["estimate", "exact"]


class WalkOptions(TypedDict, total=False):
    """Options of every loop.

    Attributes:
        size: Rows in a batch, or "auto" for the number that takes `batch.target_seconds`. Default: `batch.size`.
        name: Name of the step in the ledger. Give one if the order of the loops can change. Default: made from the
            kind of the loop and its number in the job.
    """

    size: Size | None
    name: str | None


class CountOptions(WalkOptions, total=False):
    """Options of the loops over a table.

    Attributes:
        count: How the total for `percent` is determined. "estimate" uses the planner's statistics, or the position of
            the key where possible; "exact" counts the rows first. Default: "estimate".
    """

    count: Count


class QuarantineOptions(TypedDict, total=False):
    """Options of the loops that can quarantine rows.

    Attributes:
        on_error: "quarantine" halves a failed batch until it holds only the failing row. That row goes to
            `worker.quarantine`, and the walk continues. The job function is called again for this. Default: "raise".
        quarantine_limit: Rows that may be quarantined: a number, or below 1 a share of all rows. If more rows fail, the
            run fails. Default: 0.
    """

    on_error: OnError
    quarantine_limit: float


class ParallelOptions(TypedDict, total=False):
    """Options of the loops that several runs can walk together.

    Attributes:
        parallel: The largest number of hands: this run and helper runs of the same job, which take no place under its
            limits. Each walks ranges of the key. Default: 1.
        on_hand_error: "stop" ends the walk at the next boundaries if a helper fails for good; "continue" lets the
            others process all other ranges first. The run fails in both cases. Default: "stop".
    """

    parallel: int
    on_hand_error: OnHandError


class SourceOptions(WalkOptions, QuarantineOptions, total=False):
    """Options of `JobContext.walk`."""


class OrderOptions(CountOptions, total=False):
    """Options of the loops that read each batch in the order of a key.

    Attributes:
        allow_sort: Whether to walk although no index has the order of the key, so that each batch sorts the rest of the
            table. Set it for small tables only. Default: False, which raises `UnsupportedStatement` with the
            CREATE INDEX that is missing.
    """

    allow_sort: bool


class SweepOptions(OrderOptions, ParallelOptions, total=False):
    """Options of `JobContext.sweep`.

    Attributes:
        by: A unique, not-null key to walk by: a column or a list of columns. Default: the primary key.
    """

    by: Any


class ChunkOptions(OrderOptions, QuarantineOptions, ParallelOptions, total=False):
    """Options of `JobContext.chunks`.

    Attributes:
        lock: Whether the rows are locked (FOR NO KEY UPDATE) until the batch is committed, so that no concurrent change
            is lost. With False, the rows are read in a transaction that ends before the body runs; the body's first
            statement begins the writing transaction. Default: True.
        skip_locked: Whether to skip rows that other sessions have locked, and to process them at the end of the walk,
            with a wait if necessary. All other rows are walked in the order of the key. Default: False.
        by: Column, or list of columns, of a unique and not-null key to walk by, each possibly `.desc()`. Default: the
            primary key.
        unique: Whether you vouch that `by` is unique and not null, in a view or a foreign table, for which PostgreSQL
            enforces no key. If it is not, rows with an equal key can be skipped, and rows without a key are. The key of
            a table is checked in any case. It implies `allow_sort`, and excludes `skip_locked`. Default: False.
    """

    lock: bool
    skip_locked: bool
    unique: bool
    by: Any


class StreamOptions(CountOptions, QuarantineOptions, ParallelOptions, total=False):
    """Options of `JobContext.stream`.

    Attributes:
        on_restart: "start_over" accepts a result that has no key to continue behind: a restart processes every row
            again. Default: None, which raises `UnsupportedStatement` for such a result.
        replica: Whether to read at `database.replica_url`, if it is set, once the replica has everything that was
            committed before this attempt of the walk began. Default: False.
    """

    on_restart: Literal["start_over"] | None
    replica: bool


def check_options(loop: str, options: Any, known: type) -> None:
    """Raise `TypeError` for an option that a loop does not have, as Python does for an unknown keyword argument."""
    unknown = set(options) - set(known.__annotations__)
    if unknown:
        raise TypeError(
            f"ctx.{loop}() got an unexpected keyword argument {sorted(unknown)[0]!r}; it takes "
            f"{', '.join(sorted(known.__annotations__))}"
        )
