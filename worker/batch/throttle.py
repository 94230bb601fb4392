"""Reasons to wait between two batches, and their evaluation while no transaction is open.

A `Throttle` checks one condition and returns a `Wait` with a reason, or None. The throttles of the settings (section
`throttle`) apply to every walk, the throttles of `@job(throttle=[...])` to the walks of the job. `worker pace` sets the
pace of a run or a job while it runs. Metrics of the server are read at most each `throttle.check_interval_seconds`, on
the run's own connection.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol


@dataclass(frozen=True)
class Wait:
    """The reason for a wait.

    Attributes:
        reason: The reason, for mirror and log.
        until: The aware time at which the walk continues, if it is known.
        kind: The kind of the reason, without its figures, such as "pace"; empty for the whole reason.
    """

    reason: str
    until: datetime | None = None
    kind: str = ""


@dataclass(frozen=True)
class ThrottleContext:
    """The values that a throttle may use.

    Attributes:
        raw: asyncpg's connection, outside any transaction (behind PgBouncer, in one of its own).
        table: The name of the walked table, in SQL.
        rows: The rows that this attempt has committed.
        now: The aware time.
    """

    raw: Any
    table: str
    rows: int
    now: datetime


class Throttle(Protocol):
    """A reason to wait between two batches."""

    #: Whether it queries the server, and is therefore checked each `throttle.check_interval_seconds` only.
    asks_server: bool

    async def check(self, context: ThrottleContext) -> Wait | None:
        """Return a reason to wait, or None."""


class PaceThrottle(Throttle, Protocol):
    """A throttle that limits rows per second."""

    #: Rows per second.
    limit: float

    def __init__(self, limit: float) -> None: ...

    def begin(self, rows: int, ahead: float = 0.0) -> None:
        """Begin now: only the rows above this number of the attempt count, and those that are ahead of the pace."""

    def rows_ahead(self) -> float:
        """Return the rows that are ahead of the pace, for which a walk waits."""


class Throttles:
    """All throttles of one attempt of one run.

    Args:
        always: The throttles of the settings and of the job.
        pace_type: The class of throttles that an operator's pace replaces.
        check_interval_seconds: Seconds between two queries of the server.
    """

    def __init__(
        self, always: Sequence[Throttle], *, pace_type: type[PaceThrottle], check_interval_seconds: float
    ) -> None:
        self._always = always
        self._pace_type = pace_type
        self._check_interval_seconds = check_interval_seconds
        self._asked_at = -check_interval_seconds
        self._last: Wait | None = None
        self._pace: PaceThrottle | None = None
        self._rows_per_second: float | None = None
        self._rows = 0  # at the last check

    def set_pace(self, rows_per_second: float | None) -> None:
        """Replace the pace of settings and job by an operator's; None restores it.

        A pace counts from the last batch on: the rows before it were done at another pace. Those that were ahead of
        that pace take their time at the new one, but no more than some seconds.
        """
        if rows_per_second == self._rows_per_second:
            return
        ahead = max(
            (one.rows_ahead() for one in (self._pace, *self._always) if isinstance(one, self._pace_type)), default=0.0
        )
        self._rows_per_second = rows_per_second
        self._pace = self._pace_type(rows_per_second) if rows_per_second else None
        for throttle in (self._pace, *self._always):
            if isinstance(throttle, self._pace_type):
                throttle.begin(self._rows, ahead)

    @property
    def rows_per_second(self) -> float | None:
        """The pace in force: that of an operator, or the lowest of settings and job; None without one."""
        if self._rows_per_second is not None:
            return self._rows_per_second
        return min((one.limit for one in self._always if isinstance(one, self._pace_type)), default=None)

    @property
    def is_server_check_due(self) -> bool:
        """Whether the next check queries the server."""
        due = time.monotonic() - self._asked_at >= self._check_interval_seconds
        return due and any(throttle.asks_server for throttle in self._always)

    async def check(self, context: ThrottleContext) -> Wait | None:
        """Return the first reason to wait, or None."""
        self._rows = context.rows
        for throttle in self._always:
            is_replaced = self._pace is not None and isinstance(throttle, self._pace_type)
            if not throttle.asks_server and not is_replaced:
                wait = await throttle.check(context)
                if wait is not None:
                    return wait
        if self._pace is not None:
            wait = await self._pace.check(context)
            if wait is not None:
                return wait
        if self.is_server_check_due:
            self._last = None
            for throttle in self._always:
                if throttle.asks_server and self._last is None:
                    self._last = await throttle.check(context)
            self._asked_at = time.monotonic()
        return self._last
