"""Times that other clients write to Redis: naive, far away, or no times at all."""

from __future__ import annotations

import json
import logging
import shlex
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.command_line import CommandLine
from tests.support.sampling import sampled
from tests.support.waiting import until
from tests.support.workers import with_worker, working
from worker import Client, InvalidArguments, JobContext, Settings, job
from worker.db.engine import Database
from worker.queue import keys
from worker.queue.decoding import read_time

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


@job
async def ping(ctx: JobContext) -> str:
    """Return the year in which the run was enqueued."""
    return f"{ctx.enqueued_at:%Y}"


@pytest.mark.parametrize(
    ("value", "time"),
    [
        ("2026-01-01T12:00:00+00:00", NOON),
        ("2026-01-01T14:00:00+02:00", NOON),
        ("2026-01-01T12:00:00Z", NOON),
        ("2026-01-01T12:00:00", NOON),
        ("2026-01-01", NOON - timedelta(hours=12)),
        (NOON.timestamp(), NOON),
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
    ],
)
def test_times_are_read_as_utc(value: object, time: datetime) -> None:
    read = read_time(value)
    assert read == time and read is not None and read.tzinfo is UTC


ODD: list[Any] = [
    "0001-01-01T00:00:00+00:00",
    "0001-01-01T00:00:00+23:59",
    "9999-12-31T23:59:59-23:59",
    "9999-12-31T23:59:59",
    "1969-12-31T23:59:59+00:00",
    "",
    "yesterday",
    "2026-13-01",
    "2026-01-01T25:00:00",
    "\x1b[31m",
    "1" * 5000,
    -1,
    -1e300,
    1e300,
    float("inf"),
    float("-inf"),
    float("nan"),
    253_402_300_800,
    10**400,
    True,
    None,
    [],
    {},
]
IDS = [repr(value)[:20] for value in ODD]


@pytest.mark.parametrize("value", ODD, ids=IDS)
def test_no_other_value_is_a_time(value: object) -> None:
    assert read_time(value) is None


def letter(at: object) -> str:
    values = {"job": "x", "queue": "arq:queue", "payload": "{}", "error": "e", "traceback": "", "ledger": False}
    return json.dumps(values | {"attempts": 1, "at": at})


async def test_letters_with_odd_times_are_logged_once_and_deleted_by_the_cure(
    fast: Settings, redis: Redis, database: Database, client: Client, caplog: pytest.LogCaptureFixture, cli: CommandLine
) -> None:
    await redis.hset(keys.DEAD, "good", letter(datetime.now(UTC).isoformat(timespec="seconds")))
    await redis.hset(keys.DEAD, "naive", letter(datetime.now(UTC).replace(tzinfo=None).isoformat()))
    bad = {"far": "9999-12-31T23:59:59-23:59", "none": None, "year one": "0001-01-01T00:00:00+00:00", "number": -5}
    for name, at in bad.items():
        await redis.hset(keys.DEAD, name, letter(at))
    with caplog.at_level(logging.WARNING, "longhaul.keys"):
        async with working(fast, ping):
            await until(lambda: redis.exists(keys.PRUNED))
            assert await (await client.enqueue(ping)).result(timeout=120) == str(datetime.now(UTC).year)
            await until(lambda: has_lines(caplog, len(bad)))
            listed = json.loads((await cli("dead", "--json")).stdout)
            assert {one["id"] for one in listed} == {"good", "naive"}
            assert (await cli("dead")).returncode == 0
            assert (await cli("top", "--once", "--every", "0.1")).returncode == 0
            doctor = json.loads((await cli("doctor", "--json")).stdout)["redis keys"]
            assert doctor["level"] == "wrong" and all(name in doctor["message"] for name in bad)
    lines = [record.getMessage() for record in caplog.records if "worker:dead" in record.getMessage()]
    assert len(lines) == len(bad)
    for line in lines:
        assert await redis.execute_command(*shlex.split(line.partition("cure=redis-cli ")[2])) == 1
    assert set(await redis.hkeys(keys.DEAD)) == {b"good", b"naive"}


async def has_lines(caplog: pytest.LogCaptureFixture, count: int) -> bool:
    return sum("worker:dead" in record.getMessage() for record in caplog.records) >= count


@pytest.mark.parametrize("value", sampled([*ODD, "2026-01-01T00:00:00"], 3, ids=[*IDS, "naive"]))
async def test_odd_times_of_workers_and_runs_stop_no_command(
    redis: Redis, database: Database, cli: CommandLine, value: Any
) -> None:
    worker = {"pid": 1, "host": "h", "queue": "arq:queue", "state": "running", "jobs": ["r"], "max_jobs": 1}
    await redis.hset(keys.WORKERS, "w", json.dumps(worker | {"seen_at": value, "started_at": value}))
    times = ("started_at", "updated_at", "throttled_since", "throttled_until", "stalled_since")
    await redis.hset(keys.RUN + "r", mapping={"job": "x", "state": "running", "worker": "w", "throttled": "lag"})
    await redis.hset(keys.RUN + "r", mapping=dict.fromkeys(times, str(value)))
    await redis.zadd("arq:queue", {"r": 0})
    await redis.set(keys.JOB + "r", '{"f": "x"}')
    for arguments in (("status",), ("runs", "show", "r"), ("top", "--once", "--every", "0.1")):
        ran = await cli(*arguments)
        assert (ran.returncode, ran.stderr) == (0, ""), arguments


SCORES = ["-inf", "-1e300", "-1e15", "-62135596800001", "-1", "0", "0.5", "1e-300"]


@pytest.mark.parametrize("score", SCORES)
async def test_a_job_with_an_odd_due_time_runs(
    fast: Settings, redis: Redis, client: Client, database: Database, score: str
) -> None:
    await redis.set(keys.JOB + "one", '{"f": "ping"}')
    await redis.execute_command("ZADD", "arq:queue", score, "one")
    async with working(fast, ping):
        assert await client.run("one").result(timeout=120) in ("1970", str(datetime.now(UTC).year))


@pytest.mark.parametrize("score", ["+inf", "1e300", "9e15", "253402300800000", "1e18"])
async def test_a_job_that_is_due_after_the_end_of_time_disturbs_no_other(
    fast: Settings, redis: Redis, client: Client, database: Database, cli: CommandLine, score: str
) -> None:
    await redis.set(keys.JOB + "one", '{"f": "ping"}')
    await redis.execute_command("ZADD", "arq:queue", score, "one")
    async with working(with_worker(fast, max_jobs=1), ping):
        await (await client.enqueue(ping)).result(timeout=120)
        assert [run.due_at for run in await client.runs() if run.id == "one"] == [None]
        for arguments in (("status",), ("status", "--json"), ("top", "--once", "--every", "0.1")):
            assert (await cli(*arguments)).returncode == 0, arguments
        assert await client.run("one").status() == "deferred"


ODD_OPTIONS: list[dict[str, Any]] = [
    {"delay": float("nan")},
    {"delay": float("inf")},
    {"delay": 1e300},
    {"delay": timedelta.max},
    {"delay": "5"},
    {"delay": NOON},
    {"at": datetime.max},
    {"at": datetime.max.replace(tzinfo=UTC)},
    {"at": datetime.min.replace(tzinfo=UTC)},
    {"at": "2026-01-01"},
    {"at": NOON.replace(tzinfo=None)},
    {"at": NOON, "delay": 1},
]


@pytest.mark.parametrize("options", ODD_OPTIONS, ids=str)
async def test_times_that_no_queue_can_keep_are_refused_for_jobs_and_for_names(
    client: Client, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArguments):
        ping.options(**options)
    with pytest.raises(InvalidArguments):
        await client.enqueue_by_name("ping", **options)


@pytest.mark.parametrize("time", [float("nan"), 1e300, datetime.max.replace(tzinfo=UTC)], ids=str)
def test_ends_that_no_payload_can_keep_are_refused(time: Any) -> None:
    for option in ("expires", "deadline"):
        with pytest.raises(InvalidArguments, match=f"job ping: {option}="):
            ping.options(**{option: time})
