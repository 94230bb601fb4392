"""Limits over all workers: concurrent runs, runs per time, one run with the same arguments; and their notifications."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import UTC, datetime

import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from tests.runtime.limited_jobs import (
    alone,
    nothing_seen,  # noqa: F401  (used by each test)
    seen,
)
from tests.support.claims import claim_jobs
from tests.support.waiting import round_trips, until_status
from tests.support.workers import with_worker, working
from worker import Client, JobContext, JobFailed, Settings, Snooze, job
from worker.db.engine import Database
from worker.errors import RegistrationError
from worker.job.limits import Rate
from worker.ledger import Ledger
from worker.queue import keys
from worker.queue.claims import Claim
from worker.queue.commands import retry_quarantined
from worker.queue.payload import Payload, decode_payload
from worker.runtime.limiter import Limiter

pytestmark = pytest.mark.usefixtures("database")


async def count(tenant: str = "") -> None:
    seen["now"] += 1
    seen["most"] = max(seen["most"], seen["now"])
    here = seen["by"].setdefault(tenant, [0, 0])
    here[0] += 1
    here[1] = max(here)
    await asyncio.sleep(0.01)
    seen["now"] -= 1
    here[0] -= 1


@job(concurrency=3)
async def narrow(ctx: JobContext) -> None:
    """Three at once."""
    await count()


@job(concurrency=1, concurrency_key="tenant")
async def one_each(ctx: JobContext, tenant: str) -> None:
    """One at once for each tenant."""
    await count(tenant)


@job(concurrency=1)
async def waits(ctx: JobContext) -> None:
    """Until it may end."""
    await seen["gate"].wait()


@job(rate="20/second")
async def paced(ctx: JobContext) -> None:
    """Record the time."""
    seen["moments"].append(time.monotonic())


@job
async def counted(ctx: JobContext) -> None:
    """As many at once as may."""
    await count()


@job
async def free(ctx: JobContext) -> None:
    """Nothing."""


async def test_no_more_run_at_once_than_the_limit_over_two_workers(fast: Settings, client: Client) -> None:
    runs = await client.enqueue_many(narrow, [{}] * 40)
    async with working(fast, narrow, free), working(with_worker(fast, name="other"), narrow, free):
        other = await client.enqueue(free)
        await other.result(timeout=120)  # an unlimited job does not wait behind them
        for run in runs:
            await run.result(timeout=120)
    assert seen["most"] == 3


async def test_a_limit_for_each_value_of_an_argument(fast: Settings, client: Client, redis: Redis) -> None:
    runs = await client.enqueue_many(one_each, [{"tenant": f"t{n % 3}"} for n in range(18)])
    async with working(fast, one_each):
        for run in runs:
            await run.result(timeout=120)
    assert {tenant: most for tenant, (_, most) in seen["by"].items()} == {"t0": 1, "t1": 1, "t2": 1}
    assert seen["most"] > 1
    assert await redis.keys("worker:limit:*") == await redis.keys("worker:held:*") == []


async def test_a_place_whose_worker_has_died_is_free_with_its_lease(redis: Redis) -> None:
    limiter = Limiter(redis)
    dead, alive = (Claim(run_id, "arq:queue", 0, b"", 1) for run_id in ("dead", "alive"))
    await redis.set(keys.IN_PROGRESS + "dead", "w", px=10_000)
    assert await limiter.acquire(waits, dead, {}) is None
    assert await limiter.acquire(waits, dead, {}) is None  # another attempt of the same run has its slot
    held = await limiter.acquire(waits, alive, {})
    assert held is not None
    assert held.why == "limit"
    await redis.delete(keys.IN_PROGRESS + "dead")
    assert await limiter.acquire(waits, alive, {}) is None


async def test_the_first_in_line_is_due_when_a_place_becomes_free(redis: Redis, client: Client) -> None:
    limiter = Limiter(redis)
    runs = [await client.enqueue(waits) for _ in range(3)]
    claims = await claim_jobs(client.store, "arq:queue", 3)
    assert await limiter.acquire(waits, claims[0], {}) is None
    for claim in claims[1:]:
        assert await limiter.acquire(waits, claim, {}) is not None
        await client.store.requeue(claim, delay=60, counts=False)
    line = await redis.zrange("worker:held:waits", 0, -1)
    assert {run_id.decode() for run_id in line} == {run.id for run in runs} - {claims[0].run_id}
    await limiter.release(waits, claims[0], {})
    [again] = await claim_jobs(client.store, "arq:queue", 3)
    assert again.run_id == line[0].decode()


async def test_an_operator_changes_a_limit_while_it_holds(fast: Settings, client: Client, redis: Redis) -> None:
    await redis.hset("worker:limits", "narrow", 1)
    runs = await client.enqueue_many(narrow, [{}] * 6)
    async with working(fast, narrow):
        for run in runs:
            await run.result(timeout=120)
    assert seen["most"] == 1


async def test_an_operator_limits_jobs_whose_code_does_not(fast: Settings, client: Client, redis: Redis) -> None:
    await client.limit("counted", "paced", running=1)
    await client.limit_rate("free", runs_per_second=20)
    runs = [await client.enqueue(counted) for _ in range(6)]
    async with working(fast, counted, free, paced):
        for run in runs:
            await run.result(timeout=120)
        assert seen["most"] == 1
        began = time.monotonic()
        for run in [await client.enqueue(one) for one in (free, paced) for _ in range(5)]:
            await run.result(timeout=120)
        assert 4 / 20 - 0.02 < time.monotonic() - began < 5, "a place is given back at once"
        await client.limit("counted", running=None)
        for run in [await client.enqueue(counted) for _ in range(6)]:
            await run.result(timeout=120)
    assert seen["most"] > 1
    assert await redis.keys("worker:limit:*") == await redis.keys("worker:held:*") == []


async def test_a_rate_spaces_runs_evenly_and_holds_nobody_else_up(fast: Settings, client: Client) -> None:
    runs = await client.enqueue_many(paced, [{}] * 30)
    async with working(with_worker(fast, max_jobs=2), paced, free):
        other = await client.enqueue(free)
        await other.result(timeout=120)
        assert len(seen["moments"]) < 30
        for run in runs:
            await run.result(timeout=120)
    moments = seen["moments"]
    assert len(moments) == 30
    assert moments[-1] - moments[0] >= 29 * 0.05 - 0.02


async def test_a_rate_of_the_script_never_passes_its_number(redis: Redis) -> None:
    limiter = Limiter(redis)

    @job(rate="100/minute burst 5")
    async def bursty(ctx: JobContext) -> None:
        """Five at once, and then one in 600 ms."""

    waits_ms = []
    for n in range(8):
        held = await limiter.acquire(bursty, Claim(f"r{n}", "q", 0, b"", 1), {})
        waits_ms.append(0 if held is None else round(held.seconds * 1000))
    assert waits_ms[:5] == [0] * 5
    for place, wait in enumerate(waits_ms[5:], start=1):
        assert 600 * place - 500 <= wait <= 600 * place
    # Its moment is reserved: until then it waits on, and reserves no other.
    again = await limiter.acquire(bursty, Claim("r7", "q", 0, b"", 1), {})
    assert again is not None and again.seconds * 1000 <= waits_ms[7]


HUGE = f"1/second burst {'9' * 5_000}"


@pytest.mark.parametrize(
    "text", ["", "100", "100/fortnight", "0/second", "x/minute", "1/second burst 0", "1/day burst 00", HUGE]
)
def test_what_is_no_rate_is_refused_at_import(text: str) -> None:
    with pytest.raises(RegistrationError, match="100/minute"):
        Rate.parse(text)


def test_names_of_arguments_that_are_not_there_are_refused_at_import() -> None:
    for rules in (
        {"concurrency": 1, "concurrency_key": "nope"},
        {"rate": "1/second", "rate_key": "nope"},
        {"unique": "nope"},
    ):
        with pytest.raises(RegistrationError, match="it has no argument 'nope'; it has n"):

            @job(**rules)  # type: ignore[call-overload]
            async def wrong(ctx: JobContext, n: int) -> None:
                """Never made."""


# --- attempts


@job(backoff=lambda attempt: attempt / 100, max_attempts=4)
async def stubborn(ctx: JobContext) -> None:
    """Fail each time."""
    seen["tries"].append(datetime.now(UTC))
    raise RuntimeError("no")


@job(max_attempts=1)
async def sleepy(ctx: JobContext) -> int:
    """Request a later attempt, twice."""
    seen["tries"].append(ctx.attempt)
    if len(seen["tries"]) < 3:
        raise Snooze(0.01, "the file is not there yet")
    return len(seen["tries"])


async def test_a_job_has_its_own_backoff(fast: Settings, client: Client) -> None:
    run = await client.enqueue(stubborn)
    async with working(fast, stubborn):
        with pytest.raises(JobFailed, match="attempt 4, the last"):
            await run.result(timeout=120)
    pauses = [(after - before).total_seconds() for before, after in zip(seen["tries"], seen["tries"][1:], strict=False)]
    assert [pause >= least for pause, least in zip(pauses, (0.01, 0.02, 0.03), strict=True)] == [True] * 3
    assert sum(pauses) < 5


async def test_a_snooze_costs_no_try(fast: Settings, client: Client) -> None:
    run = await client.enqueue(sleepy)
    async with working(fast, sleepy):
        assert await run.result(timeout=120) == 3
    assert seen["tries"] == [1, 1, 1]


# --- plain functions


@job
def plain(ctx: JobContext, n: int) -> dict[str, int]:
    """Block a thread for a moment."""
    time.sleep(0.05)
    return {"n": n, "thread": threading.get_ident()}


@job
def breaks(ctx: JobContext) -> None:
    """Raise."""
    raise ValueError(f"in {ctx.job}")


async def test_plain_functions_run_in_threads(fast: Settings, client: Client) -> None:
    runs = await client.enqueue_many(plain, [{"n": n} for n in range(4)])
    async with working(with_worker(fast, max_attempts=1), plain, breaks):
        found = [await run.result(timeout=120) for run in runs]
        failing = await client.enqueue(breaks)
        with pytest.raises(JobFailed, match="ValueError: in breaks"):
            await failing.result(timeout=120)
    assert [each["n"] for each in found] == [0, 1, 2, 3]
    assert threading.get_ident() not in {each["thread"] for each in found}


# --- many at once, and word of results


async def test_enqueue_many_is_validated_whole_before_anything_is_sent(client: Client, redis: Redis) -> None:
    from worker import InvalidArguments

    with pytest.raises(InvalidArguments, match="call 2"):
        await client.enqueue_many(plain, [{"n": 1}, {"n": 2}, {"n": "x"}])
    assert await redis.zcard("arq:queue") == 0
    runs = await client.enqueue_many(plain.options(delay=60), ({"n": n} for n in range(1_234)))
    assert await redis.zcard("arq:queue") == len({run.id for run in runs}) == 1_234
    assert all(run.is_new for run in runs)
    named = await client.enqueue_many("plain", [{"n": 5}])
    assert await named[0].status() == "waiting"


async def test_a_result_is_told_and_not_asked_for(fast: Settings, client: Client, redis: Redis) -> None:
    run = await client.enqueue(alone, 3)
    async with working(fast, alone):
        waiting = asyncio.create_task(run.result(timeout=120))
        await until_status(run, "running")
        before = (await redis.info("commandstats"))["cmdstat_get"]["calls"]
        await round_trips(redis)
        after = (await redis.info("commandstats"))["cmdstat_get"]["calls"]
        assert after - before <= 10  # of 200 steps
        seen["gate"].set()
        assert await waiting == 3


# --- jobs that come too late, or take too long


@job
async def note_queue(ctx: JobContext, name: str) -> None:
    """Record the order of the runs."""
    seen["moments"].append(name)


async def test_a_job_past_its_expiry_is_not_run_and_says_so(fast: Settings, client: Client) -> None:
    run = await client.enqueue(note_queue.options(expires=0.01), "late")
    in_time = await client.enqueue(note_queue.options(expires=60), "in time")
    await asyncio.sleep(0.02)
    async with working(fast, note_queue):
        with pytest.raises(JobFailed, match=r"expired 0\.\d s before it could begin: it was not run"):
            await run.result(timeout=120)
        await in_time.result(timeout=120)
    assert seen["moments"] == ["in time"]


# --- stalls


@job(stall_timeout=0.3, on_stall="retry", max_attempts=2, backoff=0)
async def hangs_once(ctx: JobContext) -> int:
    """Make progress for a while, and then none, the first time."""
    seen["tries"].append(ctx.attempt)
    for done in range(8):
        ctx.progress(done, 8)
        await asyncio.sleep(0.05)
    if len(seen["tries"]) == 1:
        await asyncio.sleep(60)
    return ctx.rows_done


async def test_a_run_without_progress_is_reported_and_one_with_it_is_not(
    fast: Settings, client: Client, redis: Redis
) -> None:
    run = await client.enqueue(hangs_once)
    async with working(fast, hangs_once):
        assert await run.result(timeout=120) == 7
    events = [(entry[b"event"].decode(), entry.get(b"run")) for _, entry in await redis.xrange("worker:events")]
    assert [kind for kind, run_id in events if run_id == run.id.encode()].count("stalled") == 1
    assert seen["tries"] == [1, 2]
    line = await redis.hgetall(f"worker:run:{run.id}")
    assert (line[b"rows"], line[b"percent"]) == (b"7", b"100.0")


async def test_rows_in_quarantine_are_tried_again_after_the_expiry_of_their_run(
    client: Client, redis: Redis, database: Database
) -> None:
    late = Payload("narrow", [], {}, 1, until_ms=1).to_json()
    async with database.transaction() as session:
        await session.execute(
            text(
                "INSERT INTO worker.run (id, job, queue, payload, arguments, state, fence, attempt, batches_before, "
                "finished_at) VALUES ('old', 'narrow', 'arq:queue', :payload, '[]', 'succeeded', 1, 1, 0, now())"
            ),
            {"payload": late},
        )
        await session.execute(
            text("INSERT INTO worker.quarantine (run_id, step, key, error) VALUES ('old', '1-chunks', '[1]', 'no')")
        )
    _, [new] = await retry_quarantined(client.reader, Ledger(database), "old")
    raw = await redis.get(keys.JOB + new)
    assert decode_payload(raw, accept_pickle=False).until_ms == 0
