"""Throttles make a walk wait between two batches, and it holds no locks during the wait."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import select, text, update

from tests.models import Author, authors
from tests.support.authors import fill_authors
from tests.support.waiting import until
from tests.support.workers import with_worker, working
from worker import Client, JobContext, Settings, job, load_settings
from worker.batch.throttle import Throttles
from worker.batch.throttles import make_throttles
from worker.db.driver import Driver
from worker.db.engine import Database
from worker.errors import SettingsError
from worker.settings import ThrottleSettings
from worker.throttles import (
    CustomThrottle,
    ForcedCheckpoints,
    RowsPerSecond,
    ThrottleContext,
    TimeWindow,
    Wait,
    WalRate,
)

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
gate: dict[str, Any] = {}


def seen(rows: int = 0, now: datetime = NOON, raw: Any = None, table: str = "author") -> ThrottleContext:
    return ThrottleContext(raw, table, rows, now)


async def test_rows_per_second_holds_for_what_they_are_worth() -> None:
    clock = [100.0]
    cap = RowsPerSecond(1_000, clock=lambda: clock[0])
    assert await cap.check(seen(0)) is None
    held = await cap.check(seen(500))
    assert held is not None
    assert held.until == NOON + timedelta(seconds=0.5)
    clock[0] += 0.4
    held = await cap.check(seen(500))
    assert held is not None
    clock[0] += 0.11
    assert await cap.check(seen(500)) is None
    clock[0] += 60  # a long pause is no credit
    assert await cap.check(seen(1_500)) is None
    held = await cap.check(seen(2_500))
    assert held is not None
    assert held.until == NOON + timedelta(seconds=1)


async def test_a_walk_under_a_cap_takes_its_time() -> None:
    clock, rows = [0.0], 0
    cap = RowsPerSecond(1_000, clock=lambda: clock[0])
    await cap.check(seen(0))
    for _ in range(20):
        clock[0] += 0.05  # the batch itself
        rows += 300
        while (held := await cap.check(seen(rows))) is not None:
            assert held.until is not None
            clock[0] += min((held.until - NOON).total_seconds(), 0.1) + 1e-9
    assert 5.9 <= clock[0] <= 7.1  # 6,000 rows


@pytest.mark.parametrize(
    ("hours", "zone", "now", "opens"),
    [
        ("01:00-06:00", "Europe/London", "2026-06-01T00:30+00:00", None),  # 01:30 in summer
        ("01:00-06:00", "Europe/London", "2026-06-01T05:30+00:00", "2026-06-02T00:00+00:00"),
        ("01:00-06:00", "Europe/London", "2026-12-01T00:30+00:00", "2026-12-01T01:00+00:00"),
        ("22:00-02:00", "UTC", "2026-06-01T23:00+00:00", None),
        ("22:00-02:00", "UTC", "2026-06-01T01:59+00:00", None),
        ("22:00-02:00", "UTC", "2026-06-01T02:00+00:00", "2026-06-01T22:00+00:00"),
    ],
)
async def test_a_window_of_the_day(hours: str, zone: str, now: str, opens: str | None) -> None:
    held = await TimeWindow(hours, zone).check(seen(now=datetime.fromisoformat(now)))
    assert (held.until.astimezone(UTC) if held and held.until else None) == (opens and datetime.fromisoformat(opens))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("WINDOW", "nights", "write begin and end, e.g. 01:00-06:00"),
        ("WINDOW", "25:00-26:00", "write begin and end"),
        ("MAX_ROWS_PER_SECOND", "0", "greater than 0"),
    ],
)
def test_wrong_settings_say_so(key: str, value: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(environment={f"LONGHAUL_THROTTLE__{key}": value})


async def test_every_figure_of_the_server_can_be_read(database: Database) -> None:
    rules = ThrottleSettings(
        max_replication_lag_seconds=10,
        max_active_sessions=1000,
        max_lock_waiters=1000,
        max_wal_bytes_per_second=1e12,
        max_dead_row_ratio=0.99,
        wait_for_vacuum=True,
        min_free_connections=1,
        max_rows_per_second=1e9,
        window="00:00-23:59",
    )
    async with database.engine.connect() as connection:
        raw = (await Driver.from_connection(connection)).raw
        for throttle in make_throttles(rules):
            assert await throttle.check(seen(raw=raw)) is None
        busy = ThrottleSettings(min_free_connections=100_000)
        [free] = make_throttles(busy)
        wait = await free.check(seen(raw=raw))
        assert wait is not None and wait.reason == "fewer than 100000 connections of the server are free"


async def test_sessions_that_work_and_that_wait_are_counted(database: Database) -> None:
    rules = ThrottleSettings(max_active_sessions=0, max_lock_waiters=0)
    active, waiting = make_throttles(rules)
    lock = text("SELECT pg_advisory_xact_lock(42)")
    async with database.engine.connect() as connection, database.session() as holder:
        raw = (await Driver.from_connection(connection)).raw
        assert await waiting.check(seen(raw=raw)) is None
        await holder.execute(lock)

        async def wait() -> None:
            async with database.session() as waiter:
                await waiter.execute(lock)

        task = asyncio.create_task(wait())
        held = await until(lambda: waiting.check(seen(raw=raw)))
        assert held.reason == "1 sessions wait for locks, over 0"
        held = await until(lambda: active.check(seen(raw=raw)))
        assert held.reason == "1 active sessions, over 0"
        await holder.rollback()
        await task


async def test_wal_is_a_rate(database: Database) -> None:
    clock = [0.0]
    rate = WalRate(1_000, clock=lambda: clock[0])
    async with database.engine.connect() as connection:
        raw = (await Driver.from_connection(connection)).raw
        assert await rate.check(seen(raw=raw)) is None
        clock[0] += 1
        async with database.transaction() as session:
            session.add_all([Author(**row) for row in authors(500)])
        held = await rate.check(seen(raw=raw))
        assert held is not None
        assert held.reason.startswith("WAL 0.")
        clock[0] += 3600
        assert await rate.check(seen(raw=raw)) is None


async def test_a_forced_checkpoint_is_rested_after(database: Database) -> None:
    rest = ForcedCheckpoints(30)
    async with database.engine.connect() as connection:
        raw = (await Driver.from_connection(connection)).raw
        assert await rest.check(seen(raw=raw)) is None
        await raw.execute("CHECKPOINT")
        held = await until(lambda: rest.check(seen(raw=raw)))
        assert held == Wait("WAL has forced a checkpoint", NOON + timedelta(seconds=30), "forced checkpoint")
        assert await rest.check(seen(raw=raw, now=NOON + timedelta(seconds=29))) == held
        assert await rest.check(seen(raw=raw, now=NOON + timedelta(seconds=30))) is None


async def test_the_server_is_asked_now_and_then_only() -> None:
    asked = []

    async def look(what: ThrottleContext) -> str | None:
        asked.append(what.rows)
        return None

    throttles = Throttles([CustomThrottle(look)], pace_type=RowsPerSecond, check_interval_seconds=3600)
    for rows in range(5):
        assert await throttles.check(seen(rows)) is None
    assert asked == [0]


async def test_an_order_wins_over_the_settings() -> None:
    throttles = Throttles([RowsPerSecond(1)], pace_type=RowsPerSecond, check_interval_seconds=1)
    await throttles.check(seen(0))
    throttles.set_pace(1e9)
    assert await throttles.check(seen(1_000)) is None
    throttles.set_pace(None)
    assert await throttles.check(seen(1_001)) is not None


@pytest.mark.parametrize("before", [None, 1_000.0, 10.0])
@pytest.mark.parametrize("after", [None, 500.0, 5.0])
@pytest.mark.parametrize("of_job", [(), (250.0,)])
async def test_rows_before_a_change_of_the_pace_do_not_count(
    before: float | None, after: float | None, of_job: tuple[float, ...]
) -> None:
    """A million rows at another pace would let the walk stand still for hours."""
    throttles = Throttles(list(map(RowsPerSecond, of_job)), pace_type=RowsPerSecond, check_interval_seconds=1)
    throttles.set_pace(before)
    await throttles.check(seen(0))
    await throttles.check(seen(1_000_000))
    throttles.set_pace(after)
    if before == after:
        return
    held = await throttles.check(seen(1_100_000))  # one batch at the new pace
    pace = after or next(iter(of_job), None)
    assert (held is None) == (pace is None)
    if held is not None and pace is not None:
        assert held.until is not None
        assert 50_000 / pace <= (held.until - NOON).total_seconds() <= 100_000 / pace + 10


@pytest.mark.parametrize(("after", "seconds"), [(100.0, 5.2), (52.0, 10.0), (5_200.0, 0.1), (10.0, 10.0), (None, 0.0)])
async def test_rows_ahead_of_a_pace_take_their_time_at_the_next_one(after: float | None, seconds: float) -> None:
    """Without that, an order to be slower would begin with a batch more than at the old pace."""
    throttles = Throttles([], pace_type=RowsPerSecond, check_interval_seconds=1)
    throttles.set_pace(260)
    await throttles.check(seen(0))
    await throttles.check(seen(520))
    throttles.set_pace(after)
    held = await throttles.check(seen(520))
    waits = 0.0 if held is None or held.until is None else (held.until - NOON).total_seconds()
    assert waits == pytest.approx(seconds, abs=0.05)


async def hold_while_closed(what: ThrottleContext) -> Wait | None:
    return Wait("the gate is closed") if gate["closed"] else None


@job(throttle=[CustomThrottle(hold_while_closed)])
async def count_up(ctx: JobContext) -> int:
    """Count each author."""
    async for batch in ctx.chunks(select(Author), size=10):
        for author in batch:
            author.seen += 1
        gate["batches"] = batch.number
        if batch.number == 2:
            gate["closed"] = True
    return ctx.rows_done


@job
async def count_by_sweep(ctx: JobContext) -> int:
    """Count each author."""
    return await ctx.sweep(update(Author).values(seen=Author.seen + 1), size=10)


@pytest.fixture
async def quick(fast: Settings, database: Database) -> Settings:
    """A hundred rows, and settings with frequent checks."""
    gate.update(closed=False, batches=0)
    await fill_authors(database, 100)
    often = fast.throttle.model_copy(update={"check_interval_seconds": 1e-6})
    return fast.model_copy(update={"throttle": often})


async def test_a_walk_that_waits_says_why_and_holds_nothing(
    quick: Settings, client: Client, redis: Redis, database: Database
) -> None:
    run = await client.enqueue(count_up)
    async with working(quick, count_up):
        line = f"worker:run:{run.id}"
        await until(lambda: _field(redis, line, "throttled", "the gate is closed"))
        assert datetime.fromisoformat((await redis.hget(line, "throttled_since")).decode()) <= datetime.now(UTC)
        # Other tasks of the worker have transactions for a moment; one of the walk would stay.
        await until(lambda: _no_transaction_waits(database))
        assert gate["batches"] == 2
        gate["closed"] = False
        assert await run.result(timeout=120) == 100
        await until(lambda: _field(redis, line, "throttled", ""))


async def _no_transaction_waits(database: Database) -> bool:
    async with database.session() as session:
        waiting = text("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'")
        return await session.scalar(waiting) == 0


async def _field(redis: Redis, key: str, name: str, value: str) -> bool:
    return bool(await redis.hget(key, name) == value.encode())


async def test_a_walk_that_waits_is_drained_and_goes_on(quick: Settings, client: Client, redis: Redis) -> None:
    run = await client.enqueue(count_up)
    async with working(quick, count_up):
        await until(lambda: _field(redis, f"worker:run:{run.id}", "throttled", "the gate is closed"))
    assert await run.status() == "waiting"
    gate["closed"] = False
    async with working(quick, count_up):
        assert await run.result(timeout=120) == 100


async def test_a_pace_is_given_and_taken_back_while_it_runs(quick: Settings, client: Client, redis: Redis) -> None:
    await redis.hset("worker:pace", "count_by_sweep", "0.5")
    await redis.hset("worker:pace", "other", "much")  # not a number: logged and ignored
    run = await client.enqueue(count_by_sweep)
    async with working(quick, count_by_sweep):
        await until(lambda: _field(redis, f"worker:run:{run.id}", "throttled", "0.5 rows/s at most"))
        assert await run.status() == "running"
        await redis.hset("worker:pace", run.id, "1000000")
        assert await run.result(timeout=120) == 100
    assert await redis.hkeys("worker:pace") == [b"count_by_sweep", b"other"]


async def test_settings_hold_for_every_walk(quick: Settings, client: Client, redis: Redis) -> None:
    slow = quick.model_copy(update={"throttle": quick.throttle.model_copy(update={"max_rows_per_second": 0.1})})
    run = await client.enqueue(count_by_sweep)
    async with working(with_worker(slow, drain_timeout_seconds=1.0), count_by_sweep):
        await until(lambda: _field(redis, f"worker:run:{run.id}", "throttled", "0.1 rows/s at most"))
