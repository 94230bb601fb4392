"""The options of the loops, written once: `JobContext`, the walk and the sources share them.

Each option has its default and its meaning here. Pass them by keyword, such as `ctx.chunks(select(User), size=1_000)`.
"""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from worker.batch.batch_retry import OnError
from worker.batch.sizing import Size

#: How a walk finds out its number of rows: by the planner's statistics, or by counting them.
Count = Literal["estimate", "exact"]


class WalkOptions(TypedDict, total=False):
    """Options of every loop.

    Attributes:
        size: Rows in a batch, or "auto" for as many as take `batch.target_seconds`. Default: `batch.size`.
        name: Name of the step in the ledger. Give one if the order of the loops can change. Default: made from the
            kind of the loop and its number in the job.
    """

    size: Size | None
    name: str | None


class CountOptions(WalkOptions, total=False):
    """Options of the loops over a table.

    Attributes:
        count: How the total is found out, of which `percent` is a part. "estimate" asks the planner's statistics and
            goes by the key's position if it can; "exact" counts the rows first. Default: "estimate".
    """

    count: Count


class QuarantineOptions(TypedDict, total=False):
    """Options of the loops that can set rows aside.

    Attributes:
        on_error: "quarantine" halves a batch that raises until the rows that fail stand alone. They go to
            `worker.quarantine`, and the walk continues. The job function is called again for that. Default: "raise".
        quarantine_limit: Rows that may be set aside: a number, or below 1 a share of all rows. With more of them the
            run fails. Default: 0.
    """

    on_error: OnError
    quarantine_limit: float


class SourceOptions(WalkOptions, QuarantineOptions, total=False):
    """Options of `JobContext.walk`."""


class SweepOptions(CountOptions, total=False):
    """Options of `JobContext.sweep`.

    Attributes:
        by: A unique, not-null key to walk by: a column or a list of columns. Default: the primary key.
    """

    by: Any


class ChunkOptions(CountOptions, QuarantineOptions, total=False):
    """Options of `JobContext.chunks`.

    Attributes:
        lock: Whether the rows are locked (FOR NO KEY UPDATE) until the batch is committed, so that no change by
            others is lost. With False, the rows are read in a transaction that ends before the body runs; the writing
            one begins with its first statement. Default: True.
        skip_locked: Whether to pass rows that others have locked and come back for them before the end. Only then are
            they waited for. The walk is in the order of the key but for those. Default: False.
        by: Column, or list of columns, of a unique and not-null key to walk by, each possibly `.desc()`. Default: the
            primary key.
    """

    lock: bool
    skip_locked: bool
    by: Any


class StreamOptions(CountOptions, QuarantineOptions, total=False):
    """Options of `JobContext.stream`.

    Attributes:
        on_restart: "start_over" admits a result that has no key to continue behind: a restart does every row again.
            Default: None, which refuses such a result.
        replica: Whether to read at `database.replica_url`, if that is set, once the replica has everything that was
            committed before the walk, or this attempt of it, began. Default: False.
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
