"""Cron under load: one run for each due time, by five workers with different clocks, while workers die and start."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from contextvars import ContextVar
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis

from tests.runtime.skewed_clock import CLOCK, LOOKED, RUNS, each_minute
from tests.support.fork_server import ForkedProcess, ForkServer
from tests.support.waiting import until
from tests.support.workers import with_worker, working
from worker import JobContext, Settings, job
from worker.db.engine import Database
from worker.embedded import Services
from worker.job.schedule import CronLine
from worker.ledger import Ledger
from worker.queue.cron_lines import firing_id
from worker.queue.store import QueueStore
from worker.runtime import scheduler as cron_module
from worker.runtime.scheduler import Scheduler
from worker.types import Registry

BEGAN = datetime(2026, 3, 2, 10, 0, 30, tzinfo=UTC)
DUE_TIMES = 24
#: Seconds around each due time at which the true clock stands: the fast, the right, and the slow one come to it.
STEPS = (-1.5, -0.5, 0.5, 1.5, 2.5)


class Clocks:
    """Worker processes, and the clock that they read, each with its own error."""

    def __init__(self, redis: Redis, services: Services, logs: Path) -> None:
        self.redis = redis
        self.processes: dict[str, ForkedProcess] = {}
        self._services = services
        self._logs = logs

    def start(self, name: str, skew: str) -> None:
        """Start a worker."""
        with (self._logs / f"{name}.log").open("wb") as log:
            self.processes[name] = ForkServer.get().spawn(
                "tests.runtime.skewed_clock", name, skew,
                env=self._services.environment(), stdout=log.fileno(), stderr=log.fileno(),
            )  # fmt: skip

    def end(self, name: str, signum: int) -> None:
        """End one."""
        process = self.processes.pop(name)
        process.send_signal(signum)
        process.wait(timeout=30)

    async def set(self, moment: datetime) -> None:
        """Set the clock."""
        await self.redis.set(CLOCK, repr(moment.timestamp()))

    async def all_have_looked(self) -> None:
        """Wait until each living worker has checked its lines at this time, and the due jobs have run."""
        clock = await self.redis.get(CLOCK)

        async def looked() -> bool:
            assert all(process.poll() is None for process in self.processes.values()), "a worker has ended"
            seen = await self.redis.hmget(LOOKED, list(self.processes))
            return all(each == clock for each in seen) and not await self.redis.exists("arq:queue")

        await until(looked)


@pytest_asyncio.fixture
async def clocks(redis: Redis, database: Database, servers: Services, tmp_path: Path) -> AsyncIterator[Clocks]:
    """Prepare, without workers."""
    made = Clocks(redis, servers, tmp_path)
    yield made
    for name in list(made.processes):
        made.end(name, signal.SIGKILL)


@pytest.mark.parametrize("due_times", [4, pytest.param(24, marks=pytest.mark.long)])
async def test_scheduler_in_five_processes_with_wrong_clocks_runs_each_due_time_once(
    clocks: Clocks, database: Database, due_times: int
) -> None:
    await clocks.set(BEGAN)
    for name, skew in {"fast": "2", "slow": "-2", "right": "0", "jumps": "jumps", "doomed": "1"}.items():
        clocks.start(name, skew)
    await clocks.all_have_looked()
    moments = [BEGAN.replace(second=0) + timedelta(minutes=n + 1) for n in range(due_times)]
    for number, due in enumerate(moments):
        for step in STEPS:
            await clocks.set(due + timedelta(seconds=step))
            if (number, step) == (due_times // 4, STEPS[0]):  # only the fast worker has it, or is about to
                clocks.end("fast", signal.SIGKILL)
                clocks.start("fast-again", "2")
            elif (number, step) == (due_times // 2, STEPS[2]):
                clocks.end("doomed", signal.SIGKILL)
                clocks.start("slow-too", "-1.5")
            elif (number, step) == (due_times * 3 // 4, STEPS[1]):
                clocks.end("right", signal.SIGTERM)
                clocks.start("right-again", "0")
            await clocks.all_have_looked()
    runs = [raw.decode().split() for raw in await clocks.redis.lrange(RUNS, 0, -1)]
    application = await Ledger(database).read_application()
    expected = [firing_id("each_minute", str(each_minute.schedule[0]), due, application) for due in moments]
    assert [run_id for run_id, _ in runs if run_id not in expected] == []
    assert [run_id for run_id in expected if run_id not in {run_id for run_id, _ in runs}] == []
    # A run whose worker was killed has a later attempt; a run that was enqueued again would have a first one.
    assert len(runs) == len({(run_id, tries) for run_id, tries in runs})
    assert sum(tries == "1" for _, tries in runs) >= due_times - 3


async def test_a_clock_that_jumps_back_and_forth_repeats_and_misses_nothing(
    database: Database, redis: Redis, settings: Settings
) -> None:
    crons = [Scheduler(Registry([each_minute]), Ledger(database), QueueStore(redis), settings.worker) for _ in range(2)]
    for cron in crons:
        await cron.start(BEGAN)
    jumping, steady = crons
    fired: list[str] = []
    for minute in range(1, DUE_TIMES + 1):
        due = BEGAN.replace(second=0) + timedelta(minutes=minute)
        for back_and_forth in (1.9, -1.9, 0.5, -30.0, 1.0, -1.0):
            fired += await jumping.look(due + timedelta(seconds=back_and_forth))
            await redis.delete(*await redis.keys("arq:*") or ["none"])  # it has run, and nothing of it is kept
            fired += await steady.look(due + timedelta(seconds=min(0.0, back_and_forth)))
        assert len(fired) == len(set(fired)) == minute


# --- the clocks of machines


@dataclass(frozen=True)
class EachSecond(CronLine):
    """A line with more due times than cron has."""

    def next_after(self, moment: datetime) -> datetime:
        return moment.replace(microsecond=0) + timedelta(seconds=1)


@job(result_ttl=0)
async def each_second(ctx: JobContext) -> None:
    """Nothing."""


each_second = replace(each_second, schedule=(EachSecond("each second", "UTC"),))

#: What the clock of this task's machine says, in seconds too much.
error: ContextVar[Callable[[], float]] = ContextVar("error", default=lambda: 0.0)


@pytest.fixture
def wrong_clocks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each task reads a clock of its own, wrong by `error`."""
    right = time.time

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.fromtimestamp(right() + error.get()(), tz)

    monkeypatch.setattr(cron_module, "datetime", Wrong)
    monkeypatch.setattr(time, "time", lambda: right() + error.get()())
    yield


@pytest.mark.usefixtures("wrong_clocks", "database")
async def test_whatever_the_clocks_of_machines_say_each_due_time_is_fired_when_the_server_says_so(
    fast: Settings, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    fire = QueueStore.fire
    fired: list[tuple[datetime, datetime]] = []

    async def noted(self: QueueStore, *args: Any, due: datetime, **options: Any) -> bool:
        ours = await fire(self, *args, due=due, **options)
        if ours:
            fired.append((due, await QueueStore.time(self)))
        return ours

    monkeypatch.setattr(QueueStore, "fire", noted)
    jumps = iter([3600.0, -3600.0] * 100_000)
    errors: list[Callable[[], float]] = [lambda: 2.0, lambda: -2.0, lambda: 0.0, lambda: 86_400.0, lambda: next(jumps)]
    async with AsyncExitStack() as workers:
        for number, wrong in enumerate(errors):
            token = error.set(wrong)
            one = working(with_worker(fast, name=f"w{number}", result_ttl_seconds=0), each_second)
            await workers.enter_async_context(one)
            error.reset(token)

        async def enough() -> bool:
            return len(fired) >= 6

        await until(enough)
    due_times = [due for due, _ in fired]
    assert len(set(due_times)) == len(due_times)
    assert sorted(due_times) == due_times
    for due, moment in fired:
        assert due <= moment < due + timedelta(seconds=10)  # not before; later only where the machine is busy


async def test_the_server_is_asked_for_the_time_when_something_should_be_due_and_seldom_before(
    database: Database, redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter([BEGAN, BEGAN, BEGAN + timedelta(seconds=30), BEGAN + timedelta(seconds=30)])
    asked: list[datetime] = []

    async def told(self: QueueStore) -> datetime:
        asked.append(next(moments))
        return asked[-1]

    monkeypatch.setattr(QueueStore, "time", told)
    cron = Scheduler(Registry([each_minute]), Ledger(database), QueueStore(redis), settings.worker)
    await cron.start()
    for _ in range(50):
        assert await cron.look() == []
    assert len(asked) == 2  # at the start, and at the first look
    assert cron_module._LONGEST_SECONDS - 1 < cron._ask_at - time.monotonic() <= cron_module._LONGEST_SECONDS
    cron._ask_at = 0.0
    assert len(await cron.look()) == 1
    assert len(asked) == 3


async def test_a_line_that_two_workers_find_new_begins_with_the_first(
    database: Database, redis: Redis, settings: Settings
) -> None:
    has_read, has_begun = asyncio.Event(), asyncio.Event()

    class SlowLedger(Ledger):
        async def list_cron_firings(self) -> Any:
            found = await super().list_cron_firings()
            has_read.set()
            await has_begun.wait()
            return found

    first, second = (
        Scheduler(Registry([each_minute]), one(database), QueueStore(redis), settings.worker)
        for one in (Ledger, SlowLedger)
    )
    due = BEGAN.replace(second=0) + timedelta(minutes=1)
    starting = asyncio.create_task(second.start(due + timedelta(seconds=1)))
    await has_read.wait()
    await first.start(BEGAN)
    has_begun.set()
    await starting
    assert len(await first.look(due)) == 1
    assert await second.look(due + timedelta(seconds=1)) == []
