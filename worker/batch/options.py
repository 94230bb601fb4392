"""What the loops can be told, by name: the types of their keyword arguments."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

from worker.batch.batch_retry import OnError
from worker.batch.sizing import Size

#: How a walk's number of rows is found out: by the planner's statistics, or by counting them.
Count = Literal["estimate", "exact"]


class ChunkOptions(TypedDict, total=False):
    """See `JobContext.chunks`."""

    size: Size | None
    lock: bool
    skip_locked: bool
    by: Any
    name: str | None
    count: Count
    on_error: OnError
    quarantine_limit: float


class StreamOptions(TypedDict, total=False):
    """See `JobContext.stream`."""

    size: Size | None
    restart: Literal["from_start"] | None
    replica: bool
    name: str | None
    count: Count
    on_error: OnError
    quarantine_limit: float
