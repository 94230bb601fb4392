"""The scheduler: exactly one run for each due time, with any number of workers, over both changes of the clock."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import Field
from redis.asyncio import Redis

from tests.support.waiting import until
from tests.support.workers import with_worker, working
from worker import Client, Job, JobContext, Settings, job
from worker.db.engine import Database
from worker.errors import RegistrationError
from worker.job.schedule import CronLine
from worker.ledger import Ledger
from worker.queue import keys
from worker.queue.cron_lines import firing_id
from worker.queue.store import QueueStore
from worker.runtime.scheduler import Scheduler
from worker.types import Registry


@job(cron=["30 1 * * *", "0 12 * * *"], timezone="Europe/London")
async def nightly(ctx: JobContext) -> None:
    """Due twice a day."""


@job(cron="* * * * *")
async def each_minute(ctx: JobContext) -> None:
    """Due each minute."""


@job(cron="* * * * * *")
async def each_second(ctx: JobContext) -> None:
    """Due each second."""


class OtherLedger(Ledger):
    """The ledger of another application: this database stands for its own."""

    async def read_application(self) -> str:
        return "other"

    async def start_cron_line(self, job: str, line: str, moment: datetime) -> None:
        await super().start_cron_line(f"other:{job}", line, moment)

    async def list_cron_firings(self) -> dict[tuple[str, str], datetime]:
        found = await super().list_cron_firings()
        return {(name.removeprefix("other:"), line): at for (name, line), at in found.items() if name[:6] == "other:"}

    @asynccontextmanager
    async def claim_firing(self, job: str, line: str, due_at: datetime) -> AsyncIterator[bool]:
        async with super().claim_firing(f"other:{job}", line, due_at) as ours:
            yield ours


@job(cron="* * * * *", unique=True)
async def keyed(ctx: JobContext, key: UUID = Field(default_factory=uuid4), days: int = 3) -> None:  # noqa: B008
    """Due each minute, with an id of its own."""


async def scheduler(
    database: Database, redis: Redis, settings: Settings, one: Job[..., Any], now: datetime, **rules: Any
) -> Scheduler:
    """Return the cron of one worker, started at a given time."""
    store = QueueStore(redis, "test")
    cron = Scheduler(Registry([one]), Ledger(database), store, with_worker(settings, **rules).worker)
    await cron.start(now)
    return cron


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


async def test_of_many_workers_one_enqueues(database: Database, redis: Redis, settings: Settings) -> None:
    began = at("2026-11-23 10:00:30")
    crons = [await scheduler(database, redis, settings, each_minute, began) for _ in range(5)]
    fired: list[str] = []
    for minute in range(1, 11):
        moment = began + timedelta(minutes=minute)
        for ids in await asyncio.gather(*(cron.look(moment) for cron in crons)):
            fired += ids
    assert len(fired) == len(set(fired)) == 10
    assert await redis.zcard("arq:queue") == 10


async def test_scheduler_draws_a_default_factory_once_for_all_attempts(
    database: Database, redis: Redis, settings: Settings
) -> None:
    began = at("2026-11-23 10:00:30")
    cron = await scheduler(database, redis, settings, keyed, began)
    [first] = await cron.look(began + timedelta(minutes=1))
    [second] = await cron.look(began + timedelta(minutes=2))
    drawn = [json.loads(await redis.get(f"arq:job:{run_id}"))["k"] for run_id in (first, second)]
    assert [list(arguments) for arguments in drawn] == [["key"], ["key"]]
    assert UUID(drawn[0]["key"]) != UUID(drawn[1]["key"])


async def test_a_worker_that_comes_late_repeats_nothing(database: Database, redis: Redis, settings: Settings) -> None:
    began = at("2026-11-23 10:00:30")
    punctual = await scheduler(database, redis, settings, each_minute, began)
    late = await scheduler(database, redis, settings, each_minute, began)
    assert len(await punctual.look(began + timedelta(minutes=1))) == 1
    await redis.delete(*await redis.keys("arq:*"))  # it has run, and its result was not kept
    assert await late.look(began + timedelta(minutes=1)) == []


async def test_a_redis_that_has_lost_its_data_repeats_nothing(
    database: Database, redis: Redis, settings: Settings
) -> None:
    began = at("2026-11-23 10:00:30")
    first = await scheduler(database, redis, settings, each_minute, began)
    assert len(await first.look(began + timedelta(minutes=1))) == 1
    await redis.flushall()
    restarted = await scheduler(database, redis, settings, each_minute, began + timedelta(seconds=40))
    assert await restarted.look(began + timedelta(seconds=50)) == []


async def test_a_redis_that_forgets_between_two_workers_looks_repeats_nothing(
    database: Database, redis: Redis, settings: Settings
) -> None:
    began = at("2026-11-23 10:00:30")
    one, two = [await scheduler(database, redis, settings, each_minute, began) for _ in range(2)]
    assert len(await one.look(began + timedelta(minutes=1))) == 1
    await redis.flushall()
    assert await two.look(began + timedelta(minutes=1)) == []
    assert len(await two.look(began + timedelta(minutes=2))) == 1


async def test_a_worker_that_dies_between_redis_and_ledger_repeats_nothing(
    database: Database, redis: Redis, settings: Settings
) -> None:
    began = at("2026-11-23 10:00:30")
    dying, other = [await scheduler(database, redis, settings, each_minute, began) for _ in range(2)]
    fire = dying._store.fire

    async def fire_and_die(*args: Any, **options: Any) -> bool:
        await fire(*args, **options)
        raise OSError("dead")

    dying._store.fire = fire_and_die  # type: ignore[method-assign]
    with pytest.raises(OSError, match="dead"):
        await dying.look(began + timedelta(minutes=1))
    await redis.delete(*await redis.keys("arq:*"))  # it has run, and its result was not kept
    assert await other.look(began + timedelta(minutes=1)) == []
    assert len(await other.look(began + timedelta(minutes=2))) == 1


@pytest.mark.parametrize(("catch_up", "runs"), [("once", 1), ("skip", 0)])
async def test_missed_times_are_caught_up_once_or_skipped(
    database: Database, redis: Redis, settings: Settings, catch_up: str, runs: int
) -> None:
    began = at("2026-11-23 10:00:30")
    before = await scheduler(database, redis, settings, nightly, began)
    assert await before.look(began) == []
    later = at("2026-11-26 18:00:00")  # three nights without a worker
    after = await scheduler(database, redis, settings, nightly, later, cron_catch_up=catch_up)
    fired = await after.look(later)
    assert len(fired) == 2 * runs  # one for each of its two lines
    if runs:
        application = await Ledger(database).read_application()
        assert firing_id("nightly", str(nightly.schedule[0]), at("2026-11-26 01:30:00"), application) in fired
    assert await after.look(later + timedelta(minutes=5)) == []


@pytest.mark.parametrize(
    ("day", "due"),
    [
        # 01:30 is skipped on 29 March 2026 in London (01:00 becomes 02:00): it runs at once after the change.
        ("2026-03-28 12:30:00", ["2026-03-29 01:00:00", "2026-03-30 00:30:00"]),
        # 01:30 comes twice on 25 October 2026 (02:00 becomes 01:00): it runs the first time.
        ("2026-10-24 12:30:00", ["2026-10-25 00:30:00", "2026-10-26 01:30:00"]),
    ],
)
def test_both_changes_of_the_clock_have_one_due_time(day: str, due: list[str]) -> None:
    line = CronLine("30 1 * * *", "Europe/London")
    first = line.next_after(at(day))
    second = line.next_after(first)
    assert [moment.astimezone(UTC) for moment in (first, second)] == [at(text) for text in due]


def test_six_fields_begin_with_the_seconds() -> None:
    line = CronLine("*/20 30 1 * * *", "UTC")
    first = line.next_after(at("2026-11-23 01:29:50"))
    assert [first, line.next_after(first)] == [at("2026-11-23 01:30:00"), at("2026-11-23 01:30:20")]


async def test_a_job_that_is_due_each_second_is_enqueued_for_each_second(
    database: Database, redis: Redis, settings: Settings
) -> None:
    began = at("2026-11-23 10:00:00")
    cron = await scheduler(database, redis, settings, each_second, began)
    fired = [run_id for second in range(1, 6) for run_id in await cron.look(began + timedelta(seconds=second))]
    assert len(set(fired)) == 5


async def test_applications_with_databases_of_their_own_share_no_due_times(
    database: Database, redis: Redis, settings: Settings
) -> None:
    began = at("2026-11-23 10:00:30")
    here = await scheduler(database, redis, settings, each_minute, began)
    there = Scheduler(
        Registry([each_minute]),
        OtherLedger(database),
        QueueStore(redis, "test"),
        with_worker(settings, queue="other").worker,
    )
    await there.start(began)
    fired = []
    for minute in range(1, 4):
        for cron in (here, there):
            fired += await cron.look(began + timedelta(minutes=minute))
    assert len(set(fired)) == 6
    assert [await redis.zcard(queue) for queue in ("arq:queue", "other")] == [3, 3]
    assert await redis.hlen(keys.CRON) == 2


async def test_a_due_time_that_an_older_worker_has_enqueued_is_not_repeated(
    database: Database, redis: Redis, settings: Settings
) -> None:
    began = at("2026-11-23 10:00:30")
    cron = await scheduler(database, redis, settings, each_minute, began)
    due = at("2026-11-23 10:01:00")
    await redis.hset(keys.CRON, "each_minute * * * * * UTC", round(due.timestamp() * 1000))
    assert await cron.look(due) == []
    assert len(await cron.look(due + timedelta(minutes=1))) == 1


@pytest.mark.parametrize("field", ["each_minute * * * * * UTC", "each_minute * * * * * UTC @{application}"])
@pytest.mark.parametrize("junk", ["junk", "nan", "inf", "-", "99999999999999", "1e400", "0x10", "\xff\x1b[31m", ""])
async def test_junk_in_the_last_due_times_is_logged_once_and_deleted_by_its_cure(
    database: Database,
    redis: Redis,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
    field: str,
    junk: str,
) -> None:
    began = at("2026-11-23 10:00:30")
    cron = await scheduler(database, redis, settings, each_minute, began)
    field = field.format(application=await Ledger(database).read_application())
    for minute in range(1, 4):
        await redis.hset(keys.CRON, field, junk.encode("latin-1"))
        assert len(await cron.look(began + timedelta(minutes=minute))) == 1
    [line] = [record.getMessage() for record in caplog.records if record.name == "longhaul.keys"]
    assert "\x1b" not in line
    await redis.hset(keys.CRON, field, junk.encode("latin-1"))
    cure = shlex.split(line.partition("cure=redis-cli ")[2])
    assert cure == ["HDEL", "worker:cron", field]
    assert await redis.execute_command(*cure) == 1


async def test_several_workers_run_a_due_job_once(
    fast: Settings, client: Client, database: Database, redis: Redis
) -> None:
    async with database.connection() as connection:  # last seen two minutes ago: there is one to catch up
        from worker.ledger.queries import query

        due = datetime.now(UTC) - timedelta(minutes=2)
        values = {"job": "each_minute", "line": str(each_minute.schedule[0]), "due_at": due}
        await connection.execute(query("fire_cron"), values)
    async with working(fast, each_minute), working(with_worker(fast, name="two"), each_minute):
        results = await until(lambda: redis.keys("arq:result:cron:each_minute:*"))
    assert len(results) == 1


@pytest.mark.parametrize(
    ("cron", "timezone", "message"),
    [
        ("61 * * * *", "UTC", "write five fields"),
        ("* * *", "UTC", "write five fields"),
        ("* * * * * * *", "UTC", "or six with the seconds first"),
        ("61 * * * * *", "UTC", "or six with the seconds first"),
        ("* * * * *", "Europe/Lundon", "there is no time zone"),
    ],
)
def test_wrong_cron_lines_are_refused_at_import(cron: str, timezone: str, message: str) -> None:
    with pytest.raises(RegistrationError, match=message):

        @job(cron=cron, timezone=timezone)
        async def wrong(ctx: JobContext) -> None: ...


def test_a_cron_job_needs_defaults() -> None:
    with pytest.raises(RegistrationError, match="give it a default"):

        @job(cron="* * * * *")
        async def wrong(ctx: JobContext, days: int) -> None: ...


@job(cron="* * * * *", unique=True)
async def alone(ctx: JobContext) -> None:
    """Be the only one."""


async def test_a_due_time_of_a_unique_job_that_runs_is_left_out(
    redis: Redis, database: Database, fast: Settings, client: Client
) -> None:
    store = QueueStore(redis)
    scheduler = Scheduler(Registry([alone]), Ledger(database, "test"), store, fast.worker)
    noon = datetime(2026, 1, 1, 12, tzinfo=UTC)
    await scheduler.start(noon)
    [first] = await scheduler.look(noon + timedelta(minutes=1))
    assert await scheduler.look(noon + timedelta(minutes=2)) == []  # it waits
    assert not (await client.enqueue(alone)).is_new
    await redis.delete(keys.JOB + first)  # it has ended
    [_] = await scheduler.look(noon + timedelta(minutes=3))


overlap = {"now": 0, "most": 0, "runs": 0}
may_end = asyncio.Event()


@job(cron="* * * * * *", unique=True)
async def slow(ctx: JobContext) -> None:
    """Take longer than the time between two due times."""
    overlap["now"] += 1
    overlap["runs"] += 1
    overlap["most"] = max(overlap["most"], overlap["now"])
    await may_end.wait()
    overlap["now"] -= 1


async def test_due_times_of_a_unique_job_start_no_second_run_while_one_is_active(
    redis: Redis, database: Database, fast: Settings
) -> None:
    may_end.clear()
    overlap.update(now=0, most=0, runs=0)

    async def due_times() -> int:
        return int(await redis.hget(keys.CRON, field) or 0) // 1000

    async def has_run() -> bool:
        return overlap["runs"] > 0

    field = f"slow * * * * * * UTC @{await Ledger(database).read_application()}"
    async with working(fast, slow):
        await until(has_run)
        began = await due_times()

        async def three_due_times_passed() -> bool:
            return await due_times() >= began + 3

        await until(three_due_times_passed)
        assert (overlap["most"], overlap["runs"]) == (1, 1)
        assert await redis.zcard("arq:queue") == 1
        may_end.set()

        async def runs_again() -> bool:
            return overlap["runs"] > 1

        await until(runs_again)
