"""Reasons to wait between two batches: each a small class, asked in turn, with no transaction open meanwhile.

A `Throttle` looks at one thing and says `Wait` with a reason, or nothing. Those of the settings (section `throttle`)
are for every walk, those of `@job(throttle=[...])` for the job's, and `worker pace` gives a run or a job another pace
while it runs. Figures of the server are read at most each `throttle.check_interval_seconds`, on the run's own
connection.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from worker.settings import ThrottleSettings, parse_window


@dataclass(frozen=True)
class Wait:
    """Why a walk waits.

    Attributes:
        reason: for mirror and log.
        until: aware time at which it goes on, where that is known.
    """

    reason: str
    until: datetime | None = None


@dataclass(frozen=True)
class ThrottleContext:
    """What a throttle may look at.

    Attributes:
        raw: asyncpg's connection, outside of any transaction (behind PgBouncer in one of its own).
        table: name of the table that is walked, as SQL spells it.
        rows: rows that this try has committed.
        now: aware time.
    """

    raw: Any
    table: str
    rows: int
    now: datetime


class Throttle(Protocol):
    """A reason to wait between two batches."""

    #: Whether it asks the server, and so is asked each `throttle.check_interval_seconds` only.
    asks_server: bool

    async def hold(self, seen: ThrottleContext) -> Wait | None:
        """Return why the walk has to wait, or None."""


class RowsPerSecond:
    """At most so many rows a second, on average; a pause is not made good by a burst.

    Args:
        limit: rows a second.
    """

    asks_server = False

    def __init__(self, limit: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._rows = 0
        self._free_at = clock()

    async def hold(self, seen: ThrottleContext) -> Wait | None:
        """Wait for as long as the rows since the last call are worth."""
        now = self._clock()
        done, self._rows = seen.rows - self._rows, seen.rows
        self._free_at += done / self._limit
        wait = self._free_at - now
        if wait <= 0:
            self._free_at = now
            return None
        return Wait(f"{self._limit:g} rows/s at most", seen.now + timedelta(seconds=wait))


class TimeWindow:
    """Only at this time of the day.

    Args:
        hours: e.g. "01:00-06:00"; over midnight, too.
        timezone: e.g. "Europe/London".

    Raises:
        ValueError: it is no window, or no zone.
    """

    asks_server = False

    def __init__(self, hours: str, timezone: str = "UTC") -> None:
        self._begin, self._end, self._zone = parse_window(hours, timezone)
        self._name = f"only {hours} {timezone}"

    async def hold(self, seen: ThrottleContext) -> Wait | None:
        """Wait outside of the window, until it opens."""
        local = seen.now.astimezone(self._zone)
        moment = local.time()
        if self._begin <= self._end:
            inside = self._begin <= moment < self._end
        else:
            inside = moment >= self._begin or moment < self._end
        if inside:
            return None
        opens = local.replace(hour=self._begin.hour, minute=self._begin.minute, second=0, microsecond=0)
        if opens <= local:
            opens += timedelta(days=1)
        return Wait(self._name, opens)


class ServerMetric:
    """A figure of the server that has a limit.

    Args:
        query: SQL that returns one number; `$1` is the walked table, where it stands in it.
        limit: largest figure that is no reason to wait.
        reason: with `{figure}` and `{limit}`.
    """

    asks_server = True

    def __init__(self, query: str, limit: float, reason: str) -> None:
        self._query = query
        self._limit = limit
        self._reason = reason

    async def hold(self, seen: ThrottleContext) -> Wait | None:
        """Wait while the figure is over its limit."""
        figure = await seen.raw.fetchval(self._query, *([seen.table] if "$1" in self._query else []))
        if figure is None or figure <= self._limit:
            return None
        return Wait(self._reason.format(figure=float(figure), limit=self._limit))


class WalRate:
    """At most so many bytes of WAL a second, of the whole server.

    Args:
        limit: bytes a second.
    """

    asks_server = True

    def __init__(self, limit: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._last: tuple[float, int] | None = None

    async def hold(self, seen: ThrottleContext) -> Wait | None:
        """Wait while the rate since the last look is over its limit."""
        position = int(await seen.raw.fetchval("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn"))
        now = self._clock()
        last, self._last = self._last, (now, position)
        if last is None or now <= last[0]:
            return None
        rate = (position - last[1]) / (now - last[0])
        if rate <= self._limit:
            return None
        return Wait(f"WAL {rate / 1e6:.1f} MB/s, over {self._limit / 1e6:.1f}")


class ForcedCheckpoints:
    """A rest after each checkpoint that WAL has forced before its time: they flush all that is dirty, at once.

    Args:
        seconds: of rest.
    """

    asks_server = True

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._known: int | None = None
        self._until: datetime | None = None

    async def hold(self, seen: ThrottleContext) -> Wait | None:
        """Wait for a while after the server's counter has grown."""
        is_new = seen.raw.get_server_version().major >= 17
        forced = int(await seen.raw.fetchval(_FORCED if is_new else _FORCED_BEFORE_17))
        known, self._known = self._known, forced
        if known is not None and forced > known:
            self._until = seen.now + timedelta(seconds=self._seconds)
        if self._until is None or seen.now >= self._until:
            return None
        return Wait("WAL has forced a checkpoint", self._until)


class CustomThrottle:
    """A function of the job's author.

    Args:
        function: takes what can be seen, returns why to wait, or None.
    """

    asks_server = True

    def __init__(self, function: Callable[[ThrottleContext], Awaitable[Wait | str | None]]) -> None:
        self._function = function

    async def hold(self, seen: ThrottleContext) -> Wait | None:
        """Ask it."""
        told = await self._function(seen)
        return Wait(told) if isinstance(told, str) else told


_LAG = "SELECT max(extract(epoch FROM replay_lag)) FROM pg_stat_replication"
_OWN_LAG = (
    "SELECT CASE WHEN pg_is_in_recovery() THEN extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp()) "
    "END"
)
_ACTIVE = (
    "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND backend_type = 'client backend' "
    "AND pid <> pg_backend_pid()"
)
_WAITERS = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
_DEAD = (
    "SELECT n_dead_tup / greatest(n_live_tup + n_dead_tup, 1)::float8 FROM pg_stat_all_tables "
    "WHERE relid = to_regclass($1::text) AND n_dead_tup > 10000"
)
_VACUUM = "SELECT count(*) FROM pg_stat_progress_vacuum WHERE relid = to_regclass($1::text)"
_CONNECTIONS = (
    "SELECT count(*) - current_setting('max_connections')::int FROM pg_stat_activity "
    "WHERE backend_type = 'client backend'"
)

_FORCED = "SELECT num_requested FROM pg_stat_checkpointer"
_FORCED_BEFORE_17 = "SELECT checkpoints_req FROM pg_stat_bgwriter"


def throttles_of(rules: ThrottleSettings) -> list[Throttle]:
    """Return what the settings ask for."""
    found: list[Throttle] = []
    if rules.window:
        found.append(TimeWindow(rules.window, rules.window_timezone))
    if rules.max_rows_per_second:
        found.append(RowsPerSecond(rules.max_rows_per_second))
    if rules.max_wal_bytes_per_second:
        found.append(WalRate(rules.max_wal_bytes_per_second))
    if rules.checkpoint_cooldown_seconds:
        found.append(ForcedCheckpoints(rules.checkpoint_cooldown_seconds))
    figures: list[tuple[str, float | None, str]] = [
        (_LAG, rules.max_replication_lag_seconds, "replication lag {figure:.1f} s, over {limit:g}"),
        (_OWN_LAG, rules.max_replication_lag_seconds, "this replica lags {figure:.1f} s, over {limit:g}"),
        (_ACTIVE, rules.max_active_sessions, "{figure:.0f} active sessions, over {limit:g}"),
        (_WAITERS, rules.max_lock_waiters, "{figure:.0f} sessions wait for locks, over {limit:g}"),
        (_DEAD, rules.max_dead_row_ratio, "{figure:.0%} of the table's rows are dead, over {limit:.0%}"),
        (_VACUUM, 0 if rules.wait_for_vacuum else None, "the table is being vacuumed"),
        (
            _CONNECTIONS,
            None if rules.min_free_connections is None else -rules.min_free_connections,
            f"fewer than {rules.min_free_connections} connections of the server are free",
        ),
    ]
    found += [ServerMetric(query, limit, reason) for query, limit, reason in figures if limit is not None]
    return found


class Throttles:
    """All that hold for one try of one run.

    Args:
        always: of settings and job.
        check_interval_seconds: how often the server is asked.
    """

    def __init__(self, always: Sequence[Throttle], *, check_interval_seconds: float) -> None:
        self._always = always
        self._check_seconds = check_interval_seconds
        self._asked_at = -check_interval_seconds
        self._last: Wait | None = None
        self._ordered: RowsPerSecond | None = None
        self._ordered_limit: float | None = None

    @property
    def any(self) -> bool:
        """Whether there is a throttle."""
        return bool(self._always) or self._ordered is not None

    def order(self, rows_per_second: float | None) -> None:
        """Take an operator's order: another pace than that of the settings; None takes it back."""
        if rows_per_second != self._ordered_limit:
            self._ordered_limit = rows_per_second
            self._ordered = RowsPerSecond(rows_per_second) if rows_per_second else None

    @property
    def ask_server(self) -> bool:
        """Whether the next look asks the server."""
        due = time.monotonic() - self._asked_at >= self._check_seconds
        return due and any(throttle.asks_server for throttle in self._always)

    async def hold(self, seen: ThrottleContext) -> Wait | None:
        """Return the first reason to wait, or None."""
        for throttle in self._always:
            if not throttle.asks_server and not (self._ordered and isinstance(throttle, RowsPerSecond)):
                held = await throttle.hold(seen)
                if held is not None:
                    return held
        if self._ordered is not None:
            held = await self._ordered.hold(seen)
            if held is not None:
                return held
        if self.ask_server:
            self._last = None
            for throttle in self._always:
                if throttle.asks_server and self._last is None:
                    self._last = await throttle.hold(seen)
            self._asked_at = time.monotonic()
        return self._last
