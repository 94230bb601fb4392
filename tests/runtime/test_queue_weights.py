"""Several queues in one worker: their weights, and the order within one."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.support.claims import claim_jobs
from tests.support.waiting import until
from tests.support.workers import with_worker, working
from worker import Client, InvalidArguments, JobContext, Settings, job
from worker.db.engine import Database
from worker.errors import RegistrationError
from worker.job.registry import Registry
from worker.ledger import Ledger
from worker.queue import keys
from worker.queue.claims import Ack
from worker.queue.store import QueueStore
from worker.runtime.scheduler import Scheduler

pytestmark = pytest.mark.usefixtures("database")

QUEUE = "arq:queue"
HEAVY = "arq:heavy"

moments: list[str] = []
counts: dict[str, int] = {}
gate: dict[str, asyncio.Event] = {}


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Clear the records of the previous test."""
    moments.clear()
    counts.update(now=0, most=0)
    gate["go"] = asyncio.Event()


@job
async def note(ctx: JobContext, name: str) -> None:
    """Record the order of the runs."""
    moments.append(name)


@job(priority=3)
async def note_first(ctx: JobContext, name: str) -> None:
    """Record the order of the runs, with a higher priority."""
    moments.append(name)


@job
async def count_heavy(ctx: JobContext) -> None:
    """Count how many run at once, until the gate opens."""
    counts["now"] += 1
    counts["most"] = max(counts["most"], counts["now"])
    await gate["go"].wait()
    counts["now"] -= 1


# --- several queues


async def fill_two_queues(client: Client, count: int) -> list[Any]:
    runs = []
    for name in ("arq:urgent", QUEUE):
        runs += await client.enqueue_many(note.options(queue=name), [{"name": name}] * count)
    return runs


@pytest.mark.parametrize("order", ["weighted", "strict"])
async def test_several_queues_are_served_by_weight_or_strictly(fast: Settings, client: Client, order: str) -> None:
    runs = await fill_two_queues(client, 60)
    several = with_worker(fast, queues={QUEUE: 1, "arq:urgent": 9}, queue_order=order, max_jobs=4)
    async with working(several, note):
        for run in runs:
            await run.result(timeout=120)
    first = moments[:40]
    if order == "strict":
        assert first == ["arq:urgent"] * 40
    else:
        assert 1 <= first.count(QUEUE) <= 20


async def test_a_worker_of_several_queues_hears_of_each(fast: Settings, client: Client) -> None:
    several = with_worker(fast, queues={QUEUE: 1, "arq:urgent": 9})
    async with working(several, note):
        for name in ("arq:urgent", QUEUE):
            run = await client.enqueue(note.options(queue=name), name)
            await run.result(timeout=120)
    assert moments == ["arq:urgent", QUEUE]


# --- limits of queues


async def running(redis: Redis) -> int:
    return len(await redis.keys(keys.IN_PROGRESS + "*"))


async def test_a_limit_of_a_queue_holds_over_all_workers_and_holds_no_other_queue_up(
    fast: Settings, client: Client, redis: Redis
) -> None:
    limited = with_worker(fast, queues={HEAVY: 9, QUEUE: 1}, queue_limits={HEAVY: 3}, max_jobs=8)
    heavy = await client.enqueue_many(count_heavy.options(queue=HEAVY), [{}] * 12)
    light = await client.enqueue_many(note, [{"name": "light"}] * 20)
    async with working(limited, count_heavy, note), working(limited, count_heavy, note):
        for run in light:
            await run.result(timeout=120)  # though the heavier queue has more than it may run

        async def three_run() -> bool:
            return await redis.zcard(keys.RUNNING + HEAVY) == 3

        await until(three_run)
        await redis.hset(keys.LIMITS, HEAVY, 5)
        await until(lambda: five_run(redis))
        gate["go"].set()
        for run in heavy:
            await run.result(timeout=120)
    assert counts["most"] == 5
    assert await redis.exists(keys.RUNNING + HEAVY) == 0


async def five_run(redis: Redis) -> bool:
    return await redis.zcard(keys.RUNNING + HEAVY) == 5 and counts["now"] == 5


async def test_what_died_gives_its_place_in_a_limited_queue_back_with_its_lease(redis: Redis) -> None:
    store, other = QueueStore(redis, "north"), QueueStore(redis, "south")
    store.claims._queue_limits = other.claims._queue_limits = {QUEUE: 2}
    await store.enqueue_many([(name, "{}") for name in "abc"], queue=QUEUE)
    assert [claim.run_id for claim in await claim_jobs(store, QUEUE, 5)] == ["a", "b"]
    assert await claim_jobs(other, QUEUE, 5) == []
    await redis.delete(keys.IN_PROGRESS + "a")  # as when its lease ends
    assert [claim.run_id for claim in await claim_jobs(other, QUEUE, 5)] == ["c"]
    assert await claim_jobs(other, QUEUE, 5) == []


# --- priorities


async def order_of(store: QueueStore, slots: int = 10) -> list[str]:
    """Claim all due jobs, one after the other, and end them."""
    taken: list[str] = []
    while claims := await claim_jobs(store, QUEUE, slots):
        taken += [claim.run_id for claim in claims]
        await store.ack_and_claim([Ack(claim, None, 0) for claim in claims], 0, [])
    return taken


@pytest.mark.parametrize("slots", [1, 2, 10])
async def test_the_higher_goes_first_and_equals_go_by_due_time(redis: Redis, slots: int) -> None:
    store = QueueStore(redis, "north")
    for name, priority in (("a0", 0), ("b5", 5), ("c9", 9), ("d0", 0), ("e5", 5)):
        await store.enqueue(name, "{}", queue=QUEUE, priority=priority)
        await redis.zadd(QUEUE, {name: 1000 + ord(name[0])}, xx=True)
        if priority:
            await redis.zadd(keys.priority_line(QUEUE, priority), {name: 1000 + ord(name[0])}, xx=True)
    assert await order_of(store, slots) == ["c9", "b5", "e5", "a0", "d0"]
    assert await redis.keys("*") == []


async def test_a_priority_does_not_make_a_job_due(redis: Redis) -> None:
    store = QueueStore(redis, "north")
    await store.enqueue("later", "{}", queue=QUEUE, priority=9, delay=3600)
    await store.enqueue_many([("many", "{}")], queue=QUEUE, priority=4, delay=3600)
    await store.enqueue("now", "{}", queue=QUEUE)
    assert await order_of(store) == ["now"]
    await redis.zadd(keys.priority_line(QUEUE, 9), {"later": 0})  # a line that is wrong does not, either
    assert await order_of(store) == []
    await redis.zadd(QUEUE, {"later": 5, "many": 6})  # a client without priorities makes them due
    await redis.zadd(keys.priority_line(QUEUE, 9), {"later": 5})
    assert await order_of(store) == ["later", "many"]


async def test_the_score_of_a_job_with_priority_is_its_due_time_as_stock_clients_expect(redis: Redis) -> None:
    store = QueueStore(redis, "north")
    due = datetime.now(UTC) - timedelta(seconds=5)
    await store.enqueue("plain", "{}", queue=QUEUE, at=due)
    await store.enqueue("first", "{}", queue=QUEUE, priority=9, at=due + timedelta(seconds=1))
    scores = [round(due.timestamp() * 1000) + later for later in (0, 1000)]
    assert await redis.zrange(QUEUE, 0, -1, withscores=True) == list(zip([b"plain", b"first"], scores, strict=True))


async def test_a_job_that_comes_again_keeps_its_priority(redis: Redis) -> None:
    store, other = QueueStore(redis, "north"), QueueStore(redis, "south")
    await store.enqueue("first", "{}", queue=QUEUE, priority=7)
    for _ in range(2):
        [claim] = await claim_jobs(store, QUEUE, 1)
        await store.enqueue("plain", "{}", queue=QUEUE)
        assert await store.requeue(claim, delay=0, counts=True)
        [claim] = await claim_jobs(other, QUEUE, 1)
        assert claim.run_id == "first"
        # Its worker dies: the lease ends, and the job is due again.
        await redis.delete(keys.IN_PROGRESS + "first")
        now = await redis.time()
        await redis.zadd(QUEUE, {"first": now[0] * 1000})
        await redis.zadd(keys.priority_line(QUEUE, 7), {"first": now[0] * 1000})
    assert [claim.run_id for claim in await claim_jobs(other, QUEUE, 2)] == ["first", "plain"]


async def test_one_that_replaces_has_its_own_priority(redis: Redis) -> None:
    store = QueueStore(redis, "north")
    await store.enqueue("a", "{}", queue=QUEUE, priority=9)
    await store.enqueue("b", "{}", queue=QUEUE, priority=5)
    await store.enqueue("a", "{}", queue=QUEUE, priority=1, replace=True)
    assert await order_of(store, 1) == ["b", "a"]


async def test_a_line_that_names_jobs_which_the_queue_does_not_have_is_mended(redis: Redis) -> None:
    store = QueueStore(redis, "north")
    await store.enqueue_many([(f"r{n}", "{}") for n in range(5)], queue=QUEUE, priority=2)
    await redis.zrem(QUEUE, "r0", "r2")  # by hand, or by a stock arq worker
    await redis.set(keys.IN_PROGRESS + "r1", "a stock arq worker")
    assert await order_of(store, 2) == ["r3", "r4"]
    assert await redis.zrange(keys.priority_line(QUEUE, 2), 0, -1) == [b"r1"]


async def test_the_priority_is_that_of_the_job_or_of_the_options(fast: Settings, client: Client) -> None:
    runs = [await client.enqueue(note, "plain")]
    runs.append(await client.enqueue(note_first.options(at=datetime.now(UTC) - timedelta(seconds=1)), "first"))
    runs += await client.enqueue_many(note_first, [{"name": "many"}])
    runs.append(await client.enqueue(note.options(priority=9), "highest"))
    runs.append(await client.enqueue(note_first.options(priority=0), "no more"))
    runs.append(await client.enqueue_by_name("note", {"name": "by name"}, priority=8))
    async with working(with_worker(fast, max_jobs=1), note, note_first):
        for run in runs:
            await run.result(timeout=120)
    assert moments == ["highest", "by name", "first", "many", "plain", "no more"]


async def test_cron_enqueues_with_the_priority_of_the_job(database: Database, redis: Redis, settings: Settings) -> None:
    @job(cron="* * * * *", priority=6)
    async def each_minute(ctx: JobContext) -> None:
        """Run each minute."""

    store = QueueStore(redis, "north")
    cron = Scheduler(Registry([each_minute]), Ledger(database, "north"), store, settings.worker)
    await cron.start()
    [entry] = cron._entries
    [run_id] = await cron.look(entry.next_due)
    assert await redis.zrange(keys.priority_line(QUEUE, 6), 0, -1) == [run_id.encode()]


@pytest.mark.parametrize("priority", [-1, 10, True, 2.5])
async def test_what_is_no_priority_is_refused(client: Client, redis: Redis, priority: Any) -> None:
    with pytest.raises(InvalidArguments, match="from 0 to 9"):
        note.options(priority=priority)
    with pytest.raises(InvalidArguments, match="from 0 to 9"):
        await client.enqueue_by_name("note", {"name": "x"}, priority=priority)
    with pytest.raises(RegistrationError, match="from 0 to 9"):
        job(priority=priority)(note.function)
    assert await redis.keys("*") == []
