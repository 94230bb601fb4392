"""The statements of a walk, for `worker plan`, which shows them before the walk runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from sqlalchemy import Executable, Select

from worker.batch.keyset import Keyset

Change = Literal["UPDATE", "DELETE", "INSERT"]


@dataclass(frozen=True)
class WalkStatements:
    """The statements of the first batch of a source that is open.

    Attributes:
        keyset: The key of the walk; None for a stream without one.
        keys: The keys that it selects, in its order; None if no order matters.
        statement: The statement of a batch: the one that reads its rows, or the one that changes them.
        values: The values of its parameters.
        locks: Whether it locks the rows that it reads.
        change: How it changes the rows; None if the job's body does that.
        target: The table that it changes, if that is not the walked one.
    """

    keyset: Keyset | None
    keys: Select[Any] | None
    statement: Executable
    values: Mapping[str, Any] = field(default_factory=dict)
    locks: bool = False
    change: Change | None = None
    target: Any = None


class DescribedSource(Protocol):
    """A source that can show its statements."""

    def describe(self, size: int) -> WalkStatements:
        """Return the statements of the first batch of `size` rows. The source is open; if empty, values are missing."""
