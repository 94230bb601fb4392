"""The built-in throttles, and their construction from the settings."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta

from worker.batch.throttle import Throttle, ThrottleContext, Wait
from worker.settings import ThrottleSettings, parse_window

#: Longest wait at the begin of a pace for rows that were done at another one.
_MOST_SECONDS_AHEAD = 10.0


class RowsPerSecond:
    """At most `limit` rows per second, on average; a burst does not make up for a pause.

    Args:
        limit: Rows per second.

    Attributes:
        limit: Rows per second.
    """

    asks_server = False

    def __init__(self, limit: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit = limit
        self._clock = clock
        self.begin(0)

    def begin(self, rows: int, ahead: float = 0.0) -> None:
        """Begin now: only the rows above this number of the attempt count, and those that are ahead of the pace."""
        self._rows = rows
        self._free_at = self._clock() + min(_MOST_SECONDS_AHEAD, ahead / self.limit)

    def rows_ahead(self) -> float:
        """Return the rows that are ahead of the pace, for which a walk waits."""
        return max(0.0, (self._free_at - self._clock()) * self.limit)

    async def check(self, context: ThrottleContext) -> Wait | None:
        """Wait for the rest of the time that the rows since the last check must take."""
        now = self._clock()
        done, self._rows = context.rows - self._rows, context.rows
        self._free_at += done / self.limit
        wait = self._free_at - now
        if wait <= 0:
            self._free_at = now
            return None
        return Wait(f"{self.limit:g} rows/s at most", context.now + timedelta(seconds=wait), "pace")


class TimeWindow:
    """A window of the day, outside of which the walk waits.

    Args:
        hours: Begin and end, such as "01:00-06:00"; it may cross midnight.
        timezone: A zone, such as "Europe/London".

    Raises:
        ValueError: The window or the zone is invalid.
    """

    asks_server = False

    def __init__(self, hours: str, timezone: str = "UTC") -> None:
        self._begin, self._end, self._zone = parse_window(hours, timezone)
        self._name = f"only {hours} {timezone}"

    async def check(self, context: ThrottleContext) -> Wait | None:
        """Wait outside of the window, until it opens."""
        local = context.now.astimezone(self._zone)
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
        return Wait(self._name, opens, "time of day")


#: The figures of a reason, which change from check to check.
_FIGURES = re.compile(r"\{[^}]*\}|, over .*| s(?=,)")


class ServerMetric:
    """A metric of the server that has a limit.

    Args:
        query: SQL that returns one number; `$1`, if it occurs, is the walked table.
        limit: The largest number that is not a reason to wait.
        reason: The reason, with `{figure}` and `{limit}`.
        kind: The reason without its figures. Default: made from `reason`.
    """

    asks_server = True

    def __init__(self, query: str, limit: float, reason: str, kind: str = "") -> None:
        self._query = query
        self._limit = limit
        self._reason = reason
        self._kind = kind or _FIGURES.sub("", reason).strip()

    async def check(self, context: ThrottleContext) -> Wait | None:
        """Wait while the metric exceeds its limit."""
        figure = await context.raw.fetchval(self._query, *([context.table] if "$1" in self._query else []))
        if figure is None or figure <= self._limit:
            return None
        return Wait(self._reason.format(figure=float(figure), limit=self._limit), kind=self._kind)


class WalRate:
    """At most `limit` bytes of WAL per second, of the whole server.

    Args:
        limit: Bytes per second.
    """

    asks_server = True

    def __init__(self, limit: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._last: tuple[float, int] | None = None

    async def check(self, context: ThrottleContext) -> Wait | None:
        """Wait while the rate since the last check exceeds its limit."""
        position = int(await context.raw.fetchval("SELECT pg_catalog.pg_current_wal_lsn() - '0/0'::pg_lsn"))
        now = self._clock()
        last, self._last = self._last, (now, position)
        if last is None or now <= last[0]:
            return None
        rate = (position - last[1]) / (now - last[0])
        if rate <= self._limit:
            return None
        return Wait(f"WAL {rate / 1e6:.1f} MB/s, over {self._limit / 1e6:.1f}", kind="WAL rate")


class ForcedCheckpoints:
    """A pause after each checkpoint that WAL has forced early: it flushes all dirty pages at once.

    Args:
        seconds: The length of the pause.
    """

    asks_server = True

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._known: int | None = None
        self._until: datetime | None = None

    async def check(self, context: ThrottleContext) -> Wait | None:
        """Wait after the server's counter of forced checkpoints has grown."""
        is_new = context.raw.get_server_version().major >= 17
        forced = int(await context.raw.fetchval(_FORCED if is_new else _FORCED_BEFORE_17))
        known, self._known = self._known, forced
        if known is not None and forced > known:
            self._until = context.now + timedelta(seconds=self._seconds)
        if self._until is None or context.now >= self._until:
            return None
        return Wait("WAL has forced a checkpoint", self._until, "forced checkpoint")


class CustomThrottle:
    """A function of the job's author as a throttle.

    Args:
        function: Takes the `ThrottleContext`, and returns the reason to wait, or None.
    """

    asks_server = True

    def __init__(self, function: Callable[[ThrottleContext], Awaitable[Wait | str | None]]) -> None:
        self._function = function

    async def check(self, context: ThrottleContext) -> Wait | None:
        """Call the function."""
        reason = await self._function(context)
        return Wait(reason) if isinstance(reason, str) else reason


_LAG = "SELECT pg_catalog.max(extract(epoch FROM replay_lag)) FROM pg_catalog.pg_stat_replication"
_OWN_LAG = (
    "SELECT CASE WHEN pg_catalog.pg_is_in_recovery() THEN "
    "extract(epoch FROM pg_catalog.clock_timestamp() - pg_catalog.pg_last_xact_replay_timestamp()) "
    "END"
)
_ACTIVE = (
    "SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity "
    "WHERE state = 'active' AND backend_type = 'client backend' AND pid <> pg_catalog.pg_backend_pid()"
)
_WAITERS = "SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_activity WHERE wait_event_type = 'Lock'"
_DEAD = (
    "SELECT n_dead_tup / greatest(n_live_tup + n_dead_tup, 1)::float8 FROM pg_catalog.pg_stat_all_tables "
    "WHERE relid = to_regclass($1::text) AND n_dead_tup > 10000"
)
_VACUUM = (
    "SELECT pg_catalog.count(*) FROM pg_catalog.pg_stat_progress_vacuum WHERE relid = pg_catalog.to_regclass($1::text)"
)
_CONNECTIONS = (
    "SELECT pg_catalog.count(*) - pg_catalog.current_setting('max_connections')::int FROM pg_catalog.pg_stat_activity "
    "WHERE backend_type = 'client backend'"
)

_FORCED = "SELECT num_requested FROM pg_catalog.pg_stat_checkpointer"
_FORCED_BEFORE_17 = "SELECT checkpoints_req FROM pg_catalog.pg_stat_bgwriter"


def make_throttles(rules: ThrottleSettings) -> list[Throttle]:
    """Return the throttles of the settings."""
    found: list[Throttle] = []
    if rules.window:
        found.append(TimeWindow(rules.window, rules.window_timezone))
    if rules.max_rows_per_second:
        found.append(RowsPerSecond(rules.max_rows_per_second))
    if rules.max_wal_bytes_per_second:
        found.append(WalRate(rules.max_wal_bytes_per_second))
    if rules.checkpoint_cooldown_seconds:
        found.append(ForcedCheckpoints(rules.checkpoint_cooldown_seconds))
    few_connections = f"fewer than {rules.min_free_connections} connections of the server are free"
    figures: list[tuple[str, float | None, str]] = [
        (_LAG, rules.max_replication_lag_seconds, "replication lag {figure:.1f} s, over {limit:g}"),
        (_OWN_LAG, rules.max_replication_lag_seconds, "this replica lags {figure:.1f} s, over {limit:g}"),
        (_ACTIVE, rules.max_active_sessions, "{figure:.0f} active sessions, over {limit:g}"),
        (_WAITERS, rules.max_lock_waiters, "{figure:.0f} sessions wait for locks, over {limit:g}"),
        (_DEAD, rules.max_dead_row_ratio, "{figure:.0%} of the table's rows are dead, over {limit:.0%}"),
        (_VACUUM, 0 if rules.wait_for_vacuum else None, "the table is being vacuumed"),
    ]
    found += [ServerMetric(query, limit, reason) for query, limit, reason in figures if limit is not None]
    if rules.min_free_connections is not None:
        found.append(ServerMetric(_CONNECTIONS, -rules.min_free_connections, few_connections, "free connections"))
    return found
