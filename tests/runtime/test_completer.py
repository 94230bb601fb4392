"""Every run ends once, in the ledger and in Redis; no content of the queue stops a worker."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

import pytest
from pydantic import BeforeValidator
from redis.asyncio import Redis
from sqlalchemy import select, text

from tests.models import Author
from tests.support.authors import count_seen, fill_authors
from tests.support.claims import claim_jobs
from tests.support.waiting import round_trips, until, until_status
from tests.support.workers import with_worker, working
from worker import Client, Job, JobCancelled, JobContext, JobFailed, NonRetryableError, Settings, job
from worker.db.engine import Database
from worker.ledger import Ledger, RunSpec
from worker.queue import keys
from worker.queue.payload import decode_payload
from worker.queue.store import QueueStore
from worker.runtime.rescuer import Rescuer
from worker.runtime.retry_policy import decide

pytestmark = pytest.mark.usefixtures("rows")

tries: list[int] = []
gate: dict[str, Any] = {}


@pytest.fixture
async def rows(database: Database) -> None:
    """Fifty rows to walk, and cleared records."""
    tries.clear()
    gate.clear()
    gate.update(begun=asyncio.Event(), go=asyncio.Event(), end=None)
    await fill_authors(database, 50)


@job
async def walk(ctx: JobContext, start: int = 0) -> str:
    """Walk, unless the gate sets another end first."""
    tries.append(ctx.attempt)
    if gate["end"] == "return":
        return "early"
    if gate["end"] == "raise":
        raise NonRetryableError("for good")
    async for batch in ctx.chunks(select(Author).where(Author.id > start), size=10):
        for author in batch:
            author.seen += 1
        if batch.number == 2:
            gate["begun"].set()
            await gate["go"].wait()
    return "walked"


async def states(database: Database) -> list[str]:
    async with database.session() as session:
        return list(await session.scalars(text("SELECT state FROM worker.run")))


async def drained(fast: Settings, client: Client, one: Job[..., Any] = walk, *, by_name: bool = False) -> Any:
    """Enqueue a walk, and drain its worker in the second batch. Return the run."""
    run = await (client.enqueue(one.name) if by_name else client.enqueue(one))
    async with working(with_worker(fast, drain_timeout_seconds=0.1), one):
        await asyncio.wait_for(gate["begun"].wait(), 60)
    assert await run.status() == "waiting"
    return run


async def rescued(fast: Settings, redis: Redis) -> None:
    """Run several rescue rounds of a worker, without a wait."""
    async with working(fast, walk) as worker:
        for _ in range(3):
            await Rescuer(worker.scheduler._ledger, worker.scheduler._store, fast).run()
            await round_trips(redis)


async def age(database: Database) -> None:
    """Make every run of the ledger appear idle for a long time."""
    async with database.transaction() as session:
        for table in ("run", "step"):
            await session.execute(text(f"UPDATE worker.{table} SET updated_at = now() - interval '1 hour'"))


@pytest.mark.parametrize(("end", "state"), [("return", "succeeded"), ("raise", "dead"), ("cancel", "cancelled")])
async def test_a_run_of_the_ledger_that_ends_before_its_loop_has_ended_there_too(
    fast: Settings, client: Client, database: Database, redis: Redis, end: str, state: str
) -> None:
    run = await drained(fast, client)
    tries.clear()
    gate["end"] = end
    if end == "cancel":
        await run.cancel()
    async with working(fast, walk):
        await until_status(run, state)
    assert await states(database) == [state]
    await age(database)
    await rescued(fast, redis)
    assert len(tries) == (0 if end == "cancel" else 1)
    assert await redis.zcard("arq:queue") == 0
    assert await count_seen(database) == {0: 40, 1: 10}


@job(name="walk")
async def deployed(ctx: JobContext, must: int) -> None:
    """Needs an argument that the old one had not."""


async def test_arguments_of_an_old_signature_wait_for_a_worker_that_has_it(
    fast: Settings, client: Client, database: Database, redis: Redis
) -> None:
    run = await drained(fast, client)
    async with working(fast, deployed):
        await until_status(run, "deferred")
    assert await states(database) == ["waiting"]
    await redis.zadd("arq:queue", {run.id: 0})
    gate["go"].set()
    async with working(fast, walk):
        assert await run.result(timeout=120) == "walked"
    assert await count_seen(database) == {1: 50}


async def test_arguments_that_do_not_fit_after_a_deploy_end_the_run_in_the_ledger(
    fast: Settings, client: Client, database: Database, redis: Redis
) -> None:
    run = await drained(fast, client, by_name=True)
    async with working(fast, deployed):
        with pytest.raises(JobFailed, match="must: field required"):
            await run.result(timeout=120)
    assert await states(database) == ["dead"]
    await age(database)
    await rescued(fast, redis)
    assert await redis.zcard("arq:queue") == 0


async def test_a_run_whose_worker_died_is_cancelled_for_good(
    fast: Settings, client: Client, database: Database, redis: Redis
) -> None:
    run = await drained(fast, client)
    async with database.transaction() as session:  # as its worker's death would leave it
        await session.execute(text("UPDATE worker.run SET state = 'running'"))
    await run.cancel()
    async with working(fast, walk):
        with pytest.raises(JobCancelled):
            await run.result(timeout=120)
    assert await states(database) == ["cancelled"]
    await age(database)
    await rescued(fast, redis)
    assert await redis.zcard("arq:queue") == 0
    assert await count_seen(database) == {0: 40, 1: 10}


@job
async def in_a_task_group(ctx: JobContext) -> str:
    """Walk inside of a TaskGroup."""
    tries.append(ctx.attempt)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(walk.function(ctx))
    return task.result()


async def test_a_drain_gets_out_of_a_task_group(fast: Settings, client: Client, database: Database) -> None:
    run = await client.enqueue(in_a_task_group)
    async with working(fast, in_a_task_group) as worker:
        await asyncio.wait_for(gate["begun"].wait(), 60)
        worker.drain()
        gate["go"].set()
    assert await run.status() == "waiting"
    assert await states(database) == ["waiting"]
    async with working(fast, in_a_task_group):
        assert await run.result(timeout=120) == "walked"
    assert await count_seen(database) == {1: 50}


@job
async def return_nul(ctx: JobContext) -> str:
    """Return a value that PostgreSQL cannot store."""
    await ctx.sweep(select_nothing())
    return "a\x00b"


@job(max_attempts=1)
async def raise_nul(ctx: JobContext) -> None:
    """Raise an error with a text that PostgreSQL cannot store."""
    await ctx.sweep(select_nothing())
    raise ValueError("a\x00b\ud800")


def select_nothing() -> Any:
    from sqlalchemy import update

    return update(Author).where(Author.id < 0).values(seen=0)


async def test_what_postgresql_cannot_keep_does_not_keep_a_run_from_its_end(
    fast: Settings, client: Client, database: Database
) -> None:
    good, bad = await client.enqueue(return_nul), await client.enqueue(raise_nul)
    async with working(fast, return_nul, raise_nul):
        assert await good.result(timeout=120) == "a\x00b"
        with pytest.raises(JobFailed, match="ValueError: a"):
            await bad.result(timeout=120)
    assert sorted(await states(database)) == ["dead", "succeeded"]
    async with database.session() as session:
        assert await session.scalar(text("SELECT error FROM worker.run WHERE state = 'dead'")) == (
            r"ValueError: a\x00b\ud800 (attempt 1, the last)"
        )


class Hard(BaseException):
    """Is no Exception."""


class Mute(Exception):
    """Its text cannot be read."""

    def __str__(self) -> str:
        raise RuntimeError("no words")


HOSTILE: dict[str, tuple[BaseException, str]] = {
    "surrogate": (FileNotFoundError("no file caf\udce9.csv"), r"FileNotFoundError: no file caf\udce9.csv"),
    "nul": (ValueError("a\x00b"), "ValueError: a\x00b"),
    "mute": (Mute(), "Mute: (its message cannot be read: RuntimeError)"),
    "no exception": (Hard("stop"), "Hard: stop"),
    "group": (BaseExceptionGroup("both", [Hard("a"), ValueError("b")]), "BaseExceptionGroup: both (2 sub-exceptions)"),
    "exit": (SystemExit(3), "NonRetryableError: the job raised SystemExit, which would end the worker"),
    "cancelled": (asyncio.CancelledError(), "LonghaulError: the job cancelled itself"),
}


@job(max_attempts=2, backoff=0)
async def raise_hostile(ctx: JobContext, kind: str) -> None:
    """Raise an error that is hard to record."""
    raise HOSTILE[kind][0]


@job(max_attempts=2, backoff=0)
async def raise_hostile_in_walk(ctx: JobContext, kind: str) -> None:
    """Raise it in a batch."""
    async for _ in ctx.chunks(select(Author.id)):
        raise HOSTILE[kind][0]


@job(max_attempts=2, backoff=0)
def raise_hostile_in_thread(ctx: JobContext, kind: str) -> None:
    """Raise it in a thread."""
    raise HOSTILE[kind][0]


@pytest.mark.parametrize("name", ["raise_hostile", "raise_hostile_in_walk", "raise_hostile_in_thread"])
async def test_run_ends_with_the_error_of_its_job_whatever_it_is(
    fast: Settings, client: Client, redis: Redis, name: str
) -> None:
    kinds = [kind for kind in HOSTILE if kind != "cancelled" or name != "raise_hostile_in_thread"]
    runs = {kind: await client.enqueue(name, kind=kind) for kind in kinds}
    async with working(fast, raise_hostile, raise_hostile_in_walk, raise_hostile_in_thread):
        for kind, run in runs.items():
            with pytest.raises(JobFailed) as failed:
                await run.result(timeout=120)
            assert HOSTILE[kind][1] in str(failed.value), kind
            letter = json.loads(await redis.hget(keys.DEAD, run.id))
            assert HOSTILE[kind][1] in letter["error"], kind
            [shown] = await client.dead_letters(ids=[run.id])
            assert (shown.error, shown.traceback) == (letter["error"], letter["traceback"]), kind


def explode(value: object) -> int:
    """A validator that raises an error that pydantic does not catch."""
    raise KeyError(value)


@job
async def with_validator(ctx: JobContext, value: Annotated[int, BeforeValidator(explode)]) -> None:
    """Never begins."""


async def test_no_entry_of_the_queue_stops_a_worker(fast: Settings, client: Client, redis: Redis) -> None:
    await redis.set("arq:job:late", '{"f": "walk", "et": 1764000000000000000}')  # nanoseconds
    await redis.set("arq:job:negative", '{"f": "walk", "et": -1}')
    await redis.set("arq:job:exploding", '{"f": "with_validator", "k": {"value": 1}}')
    await redis.set("arq:job:first", '{"f": "walk", "k": {"start": 1000}}')
    await redis.zadd("arq:queue", {"late": 0, "negative": 0, "exploding": 0, b"\xff\xfe": 0, "first": "-inf"})
    run = client.run("first")
    async with working(fast, walk, with_validator):
        assert await run.result(timeout=120) == "walked"
        for name, message in (("late", "et is not a time"), ("negative", "et is not a time"), ("exploding", "'1'|: 1")):
            with pytest.raises(JobFailed, match=message):
                await client.run(name).result(timeout=120)
        await until(lambda: _empty(redis))
    invalid = rb"invalid id: \xff\xfe"
    assert sorted(await redis.hkeys(keys.DEAD)) == [b"exploding", invalid, b"late", b"negative"]


async def _empty(redis: Redis) -> bool:
    return await redis.zcard("arq:queue") == 0


def test_an_error_that_is_declared_final_is_final_whatever_it_came_from(settings: Settings) -> None:
    rules = settings.worker
    try:
        try:
            raise ConnectionError from OSError("gone")
        except ConnectionError:
            raise NonRetryableError("and so no more") from None
    except NonRetryableError as error:
        assert not decide(error, walk, attempt=1, progressed=False, rules=rules).again
    try:
        try:
            from redis.exceptions import ConnectionError as RedisAway

            raise RedisAway("away")
        except RedisAway:
            raise ValueError("of the job's own") from None
    except ValueError as error:
        assert decide(error, walk, attempt=1, progressed=False, rules=rules).counts


async def test_a_cancel_for_nobody_does_not_wait_for_the_next_one(client: Client, redis: Redis, fast: Settings) -> None:
    gate["go"].set()
    assert not await client.run("later").cancel()
    assert await redis.scard(keys.CANCELLED) == 0
    await redis.sadd(keys.CANCELLED, "later")  # by hand, and too early
    run = await client.enqueue(walk.options(id="later"))
    async with working(fast, walk):
        assert await run.result(timeout=120) == "walked"


async def test_a_renewal_that_comes_after_a_requeue_takes_nothing_back(redis: Redis, client: Client) -> None:
    from worker.queue.scripts import script

    store = QueueStore(redis, "north:1", 10)
    run = await client.enqueue(walk)
    [claim] = await claim_jobs(store, "arq:queue", 5)
    assert await store.requeue(claim, delay=0.0, counts=True)
    renew = redis.register_script(script("renew"))
    arguments = ["north:1", 10_000, keys.IN_PROGRESS, keys.RESULT, run.id, 1]
    assert await renew(keys=["arq:queue"], args=arguments) == [b"lost"]
    assert await redis.exists(keys.IN_PROGRESS + run.id) == 0
    await until(lambda: claim_jobs(store, "arq:queue", 5))
    await redis.delete(keys.IN_PROGRESS + run.id)  # an expired lease that no worker claimed
    assert await renew(keys=["arq:queue"], args=arguments) == [b"held"]
    assert await redis.get(keys.IN_PROGRESS + run.id) == b"north:1"


async def test_two_processes_of_one_name_are_two_owners(fast: Settings, client: Client, database: Database) -> None:
    named = with_worker(fast, name="same")
    async with working(named, walk) as one, working(named, walk) as two:
        assert one.owner != two.owner
        assert one.owner.split(":")[0] == two.owner.split(":")[0] == "same"


async def test_the_payload_of_a_run_in_the_ledger_says_so(fast: Settings, client: Client, redis: Redis) -> None:
    run = await drained(fast, client)
    assert decode_payload(await redis.get(f"arq:job:{run.id}"), accept_pickle=False).in_ledger


async def test_a_late_word_of_the_last_owner_does_not_undo_a_retry(database: Database) -> None:
    ledger = Ledger(database, "first")
    run = await ledger.claim(RunSpec("retried", "walk", "arq:queue", "{}", "[]"))
    await run.finish("dead", error="no")
    assert await ledger.retry("retried", from_start=False) is not None
    from worker.errors import FencedOut

    with pytest.raises(FencedOut):
        await run.finish("dead", error="no")
    assert await states(database) == ["waiting"]
    await run.close()


async def test_a_foreign_entry_among_the_workers_does_not_stop_the_mirror(
    fast: Settings, client: Client, redis: Redis
) -> None:
    await redis.hset(keys.WORKERS, "foreign", "not JSON")
    await redis.hset(keys.WORKERS, "other", '{"no": "time"}')
    gate["go"].set()
    run = await client.enqueue(walk)
    async with working(fast, walk):
        await run.result(timeout=120)
        await until(lambda: redis.hget(keys.RUN + run.id, "finished_at"))
