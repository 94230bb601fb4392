"""The mirror in Redis, and its log messages."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from worker import Settings
from worker.batch import Progress
from worker.observe.mirror import Mirror
from worker.runtime.observer import RunInfo

RUN = RunInfo("r1", "walk", "arq:queue", 1, 0)


def batch(rows: int, total: int | None = 100) -> Progress:
    share = None if total is None else min(1.0, rows / total)
    return Progress("1-chunks", "chunks", rows, total, share, rows // 10, 10, 0.5, rows)


async def shown(redis: Redis) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in (await redis.hgetall("worker:run:r1")).items()}


@pytest.fixture
def mirror(redis: Redis, settings: Settings) -> Mirror:
    """The mirror of a worker called north."""
    return Mirror(redis, settings, "north")


@pytest.fixture
def clock(mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of the monotonic clock, which a test moves; the run has begun to walk."""
    seconds = [100.0]
    monkeypatch.setattr("worker.observe.mirror.time.monotonic", lambda: seconds[0])
    mirror.started(RUN)
    mirror.durable(RUN, attempt=1, takeovers=0, rows=0)
    return seconds


async def test_a_run_shows_its_rows_percent_and_rate(mirror: Mirror, redis: Redis) -> None:
    mirror.started(RUN)
    mirror.durable(RUN, attempt=3, takeovers=0, rows=0)  # as the ledger counts
    mirror.progressed(RUN, batch(40), rows=40)
    await mirror.write()
    line = await shown(redis)
    [(_, begun)] = await redis.xrange("worker:events")
    assert (line["attempt"], begun[b"event"], begun[b"attempt"]) == ("3", b"started", b"3")
    assert (line["job"], line["state"], line["worker"], line["rows"]) == ("walk", "running", "north", "40")
    assert (line["total"], line["percent"], line["batch_size"], line["batch_ms"]) == ("100", "40.0", "10", "500.0")
    assert float(line["rate"]) > 0
    assert int(line["eta_seconds"]) >= 0
    assert await redis.ttl("worker:run:r1") == -1
    worker = json.loads(await redis.hget("worker:workers", "north"))
    assert (worker["jobs"], worker["state"]) == (["r1"], "running")


async def test_the_time_left_is_that_of_work_without_what_a_throttle_takes(
    mirror: Mirror, redis: Redis, clock: list[float]
) -> None:
    clock[0] += 2
    mirror.progressed(RUN, batch(20), rows=20)
    since = datetime.now(UTC)
    mirror.throttled(RUN, "the replica lags", since=since, until=None)
    clock[0] += 3600
    mirror.throttled(RUN, "the replica lags still", since=since, until=None)
    clock[0] += 3600
    mirror.throttled(RUN, None, since=since, until=None)
    clock[0] += 2
    mirror.progressed(RUN, batch(40), rows=40)
    await mirror.write()
    line = await shown(redis)
    assert (line["rate"], line["eta_seconds"], line["throttled_seconds"]) == ("10.0", "6", "7200.0")


async def test_a_pace_is_the_rate_of_a_walk(mirror: Mirror, redis: Redis, clock: list[float]) -> None:
    for rows in (20, 40):
        mirror.throttled(RUN, "5 rows/s at most", since=datetime.now(UTC), until=None, kind="pace")
        clock[0] += 4
        mirror.throttled(RUN, None, since=datetime.now(UTC), until=None)
        mirror.progressed(RUN, batch(rows), rows=rows)
    await mirror.write()
    line = await shown(redis)
    assert (line["rate"], line["eta_seconds"], line["throttled_seconds"]) == ("5.0", "12", "8.0")


async def test_a_pace_is_the_rate_of_the_first_batch(mirror: Mirror, redis: Redis, clock: list[float]) -> None:
    clock[0] += 1
    mirror.progressed(RUN, batch(40), rows=40)
    since = datetime.now(UTC)
    mirror.throttled(RUN, "5 rows/s at most", since=since, until=since + timedelta(seconds=7), kind="pace")
    await mirror.write()
    line = await shown(redis)
    assert (line["rate"], line["eta_seconds"]) == ("5.0", "12")


async def test_the_time_left_of_a_long_walk_does_not_jump(mirror: Mirror, redis: Redis, clock: list[float]) -> None:
    """A second of it is less than `percent` shows, and its batches are uneven."""
    total, rows, left = 1_000_000, 0, []
    for number in range(120):
        clock[0] += 1.5 if number % 2 else 0.5
        rows += 100
        mirror.progressed(RUN, batch(rows, total), rows=rows)
        since = datetime.now(UTC)
        mirror.throttled(RUN, "100 rows/s at most", since=since, until=since, kind="pace")
        await mirror.write()
        left.append(int((await shown(redis))["eta_seconds"]))
        mirror.throttled(RUN, None, since=since, until=None)
    expected = (total - rows) / 100
    assert all(0.9 * expected < one < 1.1 * expected for one in left[20:])


async def test_an_estimate_that_was_too_low_is_never_over_a_hundred_percent(mirror: Mirror, redis: Redis) -> None:
    mirror.started(RUN)
    mirror.progressed(RUN, batch(250), rows=250)
    await mirror.write()
    assert (await shown(redis))["percent"] == "100.0"


async def test_an_ended_run_stays_for_a_while(mirror: Mirror, redis: Redis, settings: Settings) -> None:
    mirror.started(RUN)
    mirror.progressed(RUN, batch(40), rows=40)
    mirror.ended(RUN, "succeeded")
    await mirror.write()
    line = await shown(redis)
    assert (line["state"], line["percent"], line["rate"], line.get("eta_seconds")) == ("succeeded", "100.0", "0", None)
    assert 0 < await redis.ttl("worker:run:r1") <= settings.worker.result_ttl_seconds
    events = [entry[b"event"].decode() for _, entry in await redis.xrange("worker:events")]
    assert events == ["started", "succeeded"]


@pytest.fixture
def shown_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write runs to the mirror at the first write, whatever their age."""
    monkeypatch.setattr("worker.observe.mirror._YOUNG_SECONDS", 0.0)


def crowd(mirror: Mirror) -> None:
    """Start and complete as many short runs as one write shows."""
    for n in range(30):
        one = RunInfo(f"other {n}", "walk", "arq:queue", 1, 0)
        mirror.started(one)
        mirror.ended(one, "succeeded")


@pytest.mark.usefixtures("shown_at_once")
async def test_a_next_try_that_is_too_short_to_be_shown_ends_what_the_one_before_has_shown(
    mirror: Mirror, redis: Redis
) -> None:
    mirror.started(RUN)
    await mirror.write()
    assert (await shown(redis))["state"] == "running"
    mirror.requeued(RUN, "waiting", error="not yet")
    crowd(mirror)
    again = RUN._replace(attempt=2)
    mirror.started(again)  # before that was written
    mirror.ended(again, "succeeded")
    await mirror.write()
    assert (await shown(redis))["state"] == "succeeded"
    assert await redis.ttl("worker:run:r1") > 0


@pytest.mark.usefixtures("shown_at_once")
async def test_a_run_that_was_put_back_uncounted_ends_what_it_has_shown(mirror: Mirror, redis: Redis) -> None:
    mirror.started(RUN)
    await mirror.write()
    mirror.requeued(RUN, "paused")
    crowd(mirror)
    mirror.started(RUN)
    mirror.ended(RUN, "succeeded")
    await mirror.write()
    assert (await shown(redis))["state"] == "succeeded"
    assert await redis.ttl("worker:run:r1") > 0


async def test_a_claimed_run_that_has_to_wait_has_not_started(mirror: Mirror, redis: Redis) -> None:
    mirror.requeued(RUN, "deferred", delay=5.0)  # it waits for a place under a limit
    await mirror.write()
    assert (await shown(redis))["state"] == "deferred"
    assert await redis.xlen("worker:events") == 0
    mirror.started(RUN)
    mirror.ended(RUN, "succeeded")
    await mirror.write(final=True)
    assert [event[b"event"] for _, event in await redis.xrange("worker:events")] == [b"started", b"succeeded"]


@pytest.mark.usefixtures("shown_at_once")
async def test_what_a_worker_has_shown_that_died_ends_with_the_next_one(
    mirror: Mirror, redis: Redis, settings: Settings
) -> None:
    mirror.started(RUN)
    await mirror.write()
    other = Mirror(redis, settings, "south")
    crowd(other)
    again = RUN._replace(attempt=2)
    other.started(again)
    other.ended(again, "succeeded")
    await other.write()
    line = await shown(redis)
    assert (line["state"], line["worker"]) == ("succeeded", "south")
    assert await redis.ttl("worker:run:r1") > 0


async def test_what_could_not_be_written_is_written_later(
    mirror: Mirror, redis: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = redis.pipeline

    def broken(**options: object) -> object:
        made = pipeline(transaction=False)

        async def fail(**options: object) -> None:
            raise RedisConnectionError("away")

        made.execute = fail  # type: ignore[method-assign,assignment]
        return made

    mirror.started(RUN)
    mirror.progressed(RUN, batch(10), rows=10)
    with monkeypatch.context() as patched:
        patched.setattr(redis, "pipeline", broken)
        await mirror.write()
        await mirror.write()
    assert caplog.text.count("the mirror cannot be written") == 1  # logged once
    assert await shown(redis) == {}
    await mirror.write()
    assert (await shown(redis))["state"] == "running"
    assert await redis.xlen("worker:events") == 1


async def test_a_run_with_nothing_to_tell_is_shown_when_it_has_lasted_a_moment(
    mirror: Mirror, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1_800_000_000.0]
    monkeypatch.setattr("worker.observe.mirror.time.time", lambda: now[0])
    mirror.started(RUN)
    now[0] += 0.09
    await mirror.write()
    assert await shown(redis) == {}
    assert json.loads(await redis.hget("worker:workers", "north"))["jobs"] == ["r1"]
    now[0] += 0.02
    await mirror.write()
    assert (await shown(redis))["state"] == "running"


async def test_workers_that_died_without_a_word_are_forgotten(mirror: Mirror, redis: Redis) -> None:
    await redis.hset(
        "worker:workers",
        "old",
        json.dumps({"seen_at": "2020-01-01T00:00:00+00:00", "state": "running", "queue": "arq:queue", "jobs": []}),
    )
    await mirror.write()
    assert await redis.hkeys("worker:workers") == [b"north"]
    await mirror.write(final=True)
    assert await redis.hkeys("worker:workers") == []
