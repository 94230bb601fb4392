"""`SyncClient` and `Client` side by side: each operation through both, and what it returns and does is compared."""

from __future__ import annotations

import asyncio
import inspect
import re
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import pytest_asyncio
from redis.asyncio import Redis
from sqlalchemy import select, text

from tests.models import Author
from tests.queue.sync_jobs import (
    Operation,
    add,
    answer_of,
    nightly,
    open_sync_client,  # noqa: F401  (the fixture `sync`)
)
from tests.support.authors import fill_authors
from tests.support.workers import with_worker, working
from worker import (
    PREVIOUS_RESULT,
    Client,
    InvalidArguments,
    JobCancelled,
    JobContext,
    JobFailed,
    NonRetryableError,
    Settings,
    SyncClient,
    job,
)
from worker.db.engine import Database
from worker.queue.dead_letters import encode_letter
from worker.types import Overview, RunSummary


@job
async def total(ctx: JobContext, parts: list[int]) -> int:
    """Return the sum of some results."""
    return sum(parts)


@job
async def fail(ctx: JobContext, number: int) -> None:
    """Fail permanently."""
    raise NonRetryableError(f"number {number}")


@job
async def seven_are_bad(ctx: JobContext) -> int:
    """Quarantine an author, and fail permanently behind them."""
    async for batch in ctx.chunks(select(Author), size=10, name="loop", on_error="quarantine", quarantine_limit=0.5):
        for author in batch:
            if author.id == 7:
                raise ValueError("seven")
    raise NonRetryableError("at its end")


@pytest_asyncio.fixture
async def scene(database: Database, client: Client, fast: Settings, redis: Redis) -> AsyncIterator[None]:
    """Runs that have succeeded, are dead, have quarantined a row, and wait."""
    await fill_authors(database, 20)
    async with working(fast, add, fail, seven_are_bad):
        for run_id, name, arguments in (
            ("sum", "add", {"a": 1}),
            ("dead", "fail", {"number": 5}),
            ("walk-1", "seven_are_bad", {}),
            ("walk-2", "seven_are_bad", {}),
        ):
            run = await client.enqueue_by_name(name, arguments, id=run_id)
            [_ async for _ in run.progress(every=0.02)]  # one after the other: they are listed by their begin
    await client.enqueue(add.options(id="later", delay=3600), 1)
    await client.pause("sums", where={"a": 1})
    await client.limit("add", running=3)
    await client.limit_rate("add", runs_per_second=2.5)
    await client.pace("*", rows_per_second=100)
    yield


READS: dict[str, Operation] = {
    "status": lambda c: c.status(),
    "runs": lambda c: c.runs(),
    "runs of a job": lambda c: c.runs(job="fail", state="dead"),
    "runs with a text": lambda c: c.runs(search="NUMBER 5"),
    "recorded_runs": lambda c: c.recorded_runs(),
    "recorded_runs with a text": lambda c: c.recorded_runs(job="seven_are_bad", state="dead", search="AT ITS END"),
    "recorded_runs, second page": lambda c: c.recorded_runs(before=(datetime.now(UTC), "z"), limit=1),
    "find_run, succeeded": lambda c: c.find_run("sum"),
    "find_run, dead": lambda c: c.find_run("dead"),
    "find_run, deferred": lambda c: c.find_run("later"),
    "find_run, in the ledger": lambda c: c.find_run("walk-1"),
    "dead_letters": lambda c: c.dead_letters(),
    "dead_letters of the ledger": lambda c: c.dead_letters(ledger=True, job="seven_are_bad"),
    "dead_letters by id": lambda c: c.dead_letters(ids=["dead", "walk-1"], before=datetime.now(UTC), ledger=True),
    "quarantined_rows": lambda c: c.quarantined_rows(),
    "quarantined_rows of a run": lambda c: c.quarantined_rows(run_id="walk-1"),
    "limits": lambda c: c.limits(),
    "run_log": lambda c: c.run_log("walk-1"),
    "cron": lambda c: c.cron([nightly]),
}


@pytest.mark.usefixtures("scene")
async def test_both_clients_read_the_same_of_runs_letters_rows_limits_and_cron(
    client: Client, sync: SyncClient
) -> None:
    for name, operation in READS.items():
        wanted = without_moments(await operation(client))
        assert wanted, name
        assert without_moments(await asyncio.to_thread(operation, sync)) == wanted, name
    for one in (client, sync):
        await check_contents(one)


def without_moments(answer: Any) -> Any:
    """Return an answer without what differs between two calls: seconds until a run is due, and the order of SCAN."""
    if isinstance(answer, list) and answer and isinstance(answer[0], RunSummary):
        return sorted(answer, key=lambda run: run.id)
    if isinstance(answer, Overview):
        for run in answer.runs:
            run.fields.pop("due_seconds", None)
    return answer


async def check_contents(client: Any) -> None:
    """Check some of what `READS` has compared."""

    async def of(name: str) -> Any:
        found = await asyncio.to_thread(READS[name], client)
        return await found if inspect.isawaitable(found) else found

    assert {run.id: run.state for run in await of("runs")} == {
        "later": "deferred",
        "sum": "succeeded",
        **dict.fromkeys(("dead", "walk-1", "walk-2"), "dead"),
    }
    assert [run.id for run in await of("runs with a text")] == ["dead"]
    assert [run.id for run in await of("recorded_runs with a text")] == ["walk-2", "walk-1"]
    assert [run.id for run in await of("recorded_runs, second page")] == ["walk-2"]
    found = await of("find_run, succeeded")
    assert (found.job, found.state, found.arguments, found.result) == ("add", "succeeded", {"a": 1}, 3)
    found = await of("find_run, dead")
    assert (found.state, found.error) == ("dead", "NonRetryableError: number 5")
    assert "NonRetryableError" in found.traceback
    assert (await of("find_run, in the ledger")).record.steps[0].name == "loop"
    assert [row.key for row in await of("quarantined_rows of a run")] == [[7]]


ORDERS: dict[str, Operation] = {
    "enqueue": lambda c: c.enqueue(add.options(id="x", priority=3, delay=60), 1),
    "enqueue, known": lambda c: c.enqueue(add.options(id="a"), 1),
    "enqueue, replace": lambda c: c.enqueue(add.options(id="a", replace=True), 7),
    "enqueue a chain": lambda c: c.enqueue(add.options(id="x", then=[total.call(parts=[1])]), 1),
    "enqueue a name": lambda c: c.enqueue("add", a=1),
    "enqueue_by_name": lambda c: c.enqueue_by_name("add", {"a": 1}, id="x", delay=timedelta(days=1), queue="other"),
    "enqueue_many": lambda c: c.enqueue_many(add, [{"a": n} for n in range(501)]),
    "enqueue_many names": lambda c: c.enqueue_many("add", [{"a": 1}]),
    "group": lambda c: c.group([add.call(n) for n in range(3)], then=total.call(parts=PREVIOUS_RESULT), id="g"),
    "trigger_cron": lambda c: c.trigger_cron(nightly),
    "pause": lambda c: c.pause("add", "*"),
    "pause by argument": lambda c: c.pause("add", where={"a": 1}),
    "resume": lambda c: c.resume("fail", "nobody"),
    "pace": lambda c: c.pace("add", rows_per_second=12.5),
    "pace, reset": lambda c: c.pace("fail", rows_per_second=None),
    "limit": lambda c: c.limit("add", running=2),
    "limit, reset": lambda c: c.limit("fail", running=None),
    "limit_rate": lambda c: c.limit_rate("add", runs_per_second=0.5),
    "limit_rate, reset": lambda c: c.limit_rate("fail", runs_per_second=None),
    "cancel": lambda c: c.cancel("a", "nobody"),
    "cancel by argument": lambda c: c.cancel("add", where={"a": 1}),
    "drain": lambda c: c.drain("w1", "nobody"),
    "retry": lambda c: c.retry("a", "b"),
}
#: Each with the error that both raise.
WRONG: dict[str, tuple[Operation, type[Exception]]] = {
    "arguments": (lambda c: c.enqueue(add, "x"), InvalidArguments),
    "many arguments": (lambda c: c.enqueue_many(add, [{"a": 1}, {"b": 1}]), InvalidArguments),
    "no job": (lambda c: c.enqueue(42), InvalidArguments),
    "no member": (lambda c: c.group([]), InvalidArguments),
    "no target": (lambda c: c.pause(), InvalidArguments),
    "an empty target": (lambda c: c.retry(""), InvalidArguments),
    "no pace": (lambda c: c.pace("x", rows_per_second=0), InvalidArguments),
    "no limit": (lambda c: c.limit("x", running=-1), InvalidArguments),
    "no rate": (lambda c: c.limit_rate("x", runs_per_second=float("nan")), InvalidArguments),
    "no cron line": (lambda c: c.trigger_cron(add), InvalidArguments),
    "no letter": (lambda c: c.delete_dead_letters(), InvalidArguments),
    "too many letters": (lambda c: c.delete_dead_letters("x", everything=True), InvalidArguments),
    "no dead run": (lambda c: c.retry_dead_letters(), InvalidArguments),
    "no row": (lambda c: c.discard_quarantined(), InvalidArguments),
    "no ended run": (lambda c: c.retry_now(), InvalidArguments),
}


async def test_both_clients_write_the_same_into_redis(client: Client, sync: SyncClient, redis: Redis) -> None:
    for name, operation in ORDERS.items():
        done = []
        for one in (client, sync):
            await begin(client, redis)
            before = await contents(redis)
            answer = await answer_of(operation, one)
            after = await contents(redis)
            assert name in ("enqueue, known", "resume") or after != before, name
            done.append((normalise(answer), after))
        assert done[0] == done[1], name


async def test_both_clients_reject_the_same_and_change_nothing(client: Client, sync: SyncClient, redis: Redis) -> None:
    await begin(client, redis)
    before = await contents(redis)
    for name, (operation, kind) in WRONG.items():
        messages = []
        for one in (client, sync):
            with pytest.raises(kind) as raised:
                await answer_of(operation, one)
            messages.append(str(raised.value))
        assert messages[0] == messages[1], name
    assert await contents(redis) == before


async def begin(client: Client, redis: Redis) -> None:
    """Make the state that each order begins with."""
    await redis.flushall()
    await client.enqueue(add.options(id="a"), 1)
    await client.pause("fail")
    await client.pace("fail", rows_per_second=1)
    await client.limit("fail", running=1)
    await client.limit_rate("fail", runs_per_second=1)
    await redis.hset("worker:workers", "w1", "{}")


def normalise(value: Any) -> Any:
    """Return an answer or a value of Redis without what differs each time: ids and moments."""
    if isinstance(value, list | tuple):
        return [normalise(one) for one in value]
    if hasattr(value, "next_runs"):
        return [normalise(value.id), value.is_new, value.replaced, normalise(value.next_runs)]
    if hasattr(value, "callback"):
        return [normalise(value.id), normalise(value.runs), normalise(value.callback)]
    text = value.decode() if isinstance(value, bytes) else str(value)
    return re.sub(r"[0-9a-f]{32}|\d{13,}(\.0)?|\d{8}T[\d.]+Z", "#", text)


async def contents(redis: Redis) -> list[tuple[str, Any]]:
    """Return all keys and their values."""
    read: dict[bytes, Callable[[bytes], Any]] = {
        b"string": redis.get,
        b"hash": redis.hgetall,
        b"set": redis.smembers,
        b"zset": lambda key: redis.zrange(key, 0, -1, withscores=True),
    }

    async def read_stream(key: bytes) -> list[Any]:
        return [{name: text for name, text in entry.items() if name != b"at"} for _, entry in await redis.xrange(key)]

    read[b"stream"] = read_stream
    found = []
    for key in await redis.keys("*"):
        value = await read[await redis.type(key)](key)
        if isinstance(value, dict):
            value = value.items()
        lines = sorted(str(normalise(one)) for one in (value if not isinstance(value, bytes) else [value]))
        found.append((normalise(key), lines))
    return sorted(found)


@pytest.mark.usefixtures("scene")
async def test_both_clients_retry_and_delete_dead_runs_and_quarantined_rows(
    client: Client, sync: SyncClient, redis: Redis
) -> None:
    for one, walk in ((client, "walk-1"), (sync, "walk-2")):
        [again] = await answer_of(lambda c, walk=walk: c.retry_quarantined(walk), one)
        assert (again.id.startswith(f"{walk}:retry:loop:"), again.is_new) == (True, True)
        assert await redis.zscore("arq:queue", again.id) is not None
        assert await answer_of(lambda c, walk=walk: c.discard_quarantined(run_id=walk), one) == 1
        assert await answer_of(lambda c, walk=walk: c.quarantined_rows(run_id=walk), one) == []
        assert await answer_of(lambda c, walk=walk: c.retry_now(walk, "nobody"), one) == [walk]
        assert await redis.zscore("arq:queue", walk) is not None
        before = await answer_of(lambda c: c.dead_letters(ledger=True), one)
        assert await answer_of(lambda c: c.retry_dead_letters(job="fail"), one) == ["dead"]
        assert await answer_of(lambda c: c.retry_dead_letters(job="fail"), one) == []
        await redis.zrem("arq:queue", "dead")
        letter = next(letter for letter in before if letter.id == "dead")
        await redis.hset("worker:dead", "dead", encode_again(letter))
        assert await answer_of(lambda c: c.delete_dead_letters(job="fail"), one) == ["dead"]
        await redis.hset("worker:dead", "dead", encode_again(letter))
    assert await answer_of(lambda c: c.delete_dead_letters(everything=True), sync) == ["dead"]
    assert await client.dead_letters(ledger=True) == []


def encode_again(letter: Any) -> bytes:
    """Return the value of a dead letter in Redis."""
    values = {"job": letter.job, "queue": letter.queue, "attempts": 1, "error": letter.error, "trace": ""}
    return encode_letter(letter.payload, **values, in_ledger=False)


async def test_both_clients_enqueue_in_the_transaction_of_a_session(
    client: Client, sync: SyncClient, database: Database
) -> None:
    rows = []
    for one in (client, sync):
        calls: list[Operation] = [
            lambda session, one=one: one.enqueue_in(session, add.options(id="x", delay=60), 1),
            lambda session, one=one: one.enqueue_many_in(session, add, [{"a": 1}, {"a": 2}]),
        ]
        async with database.session() as session:
            for call in calls:
                await (call(session) if one is client else session.run_sync(call))
            found = await session.execute(text("SELECT run_id, job, queue, payload, priority FROM worker.outbox"))
            rows.append(sorted(normalise(list(row)) for row in found))
            await session.rollback()
    assert rows[0] == rows[1]
    assert len(rows[0]) == 3
    async with database.session() as session:
        with pytest.raises(InvalidArguments, match="SyncClient takes a Session or a Connection, not ScopedSession"):
            sync.enqueue_in(session, add, 1)  # type: ignore[call-overload]


# --- the surface


def public_methods(cls: type) -> dict[str, list[Any]]:
    """Return the parameters of the public methods of a class."""
    return {
        name: [(one.name, one.kind, one.default) for one in inspect.signature(member).parameters.values()]
        for name, member in inspect.getmembers(cls, inspect.isfunction)
        if not name.startswith("_")
    }


def test_sync_client_has_every_method_of_client_with_the_same_parameters() -> None:
    own = {"command"}  # for modules of this package
    wanted = {name: signature for name, signature in public_methods(Client).items() if name not in own}
    assert public_methods(SyncClient) == wanted
    tried = {name.split()[0].rstrip(",") for name in (*READS, *ORDERS)}
    tried |= {
        "enqueue_in",
        "enqueue_many_in",
        "retry_quarantined",
        "discard_quarantined",
        "retry_now",
        "retry_dead_letters",
        "delete_dead_letters",
        "outbox_rows",
        "retry_outbox",
        "delete_outbox",
    }
    assert wanted.keys() - tried == {"close", "plan", "run"}, "add new methods to the tables above"


@pytest.mark.usefixtures("database", "redis")
async def test_a_sync_run_waits_reports_and_raises_as_a_run_does(fast: Settings, sync: SyncClient) -> None:
    def use() -> list[Any]:
        run, failing, gone = sync.enqueue(add, 1), sync.enqueue(fail, 1), sync.enqueue(add.options(delay=60), 1)
        group = sync.group([add.call(n) for n in range(3)], then=total.call(parts=PREVIOUS_RESULT))
        assert gone.cancel()
        assert group.callback is not None
        seen: list[Any] = [run.result(timeout=60), group.callback.result(timeout=60), group.progress().called]
        for one in (failing, gone):
            try:
                one.result(timeout=60)
            except (JobFailed, JobCancelled) as error:
                seen.append(type(error))
        seen.append([report.state for report in sync.run(run.id).progress()])
        seen.append(sync.run(run.id, add).status())
        try:
            sync.enqueue(add.options(delay=60), 1).result(timeout=0)
        except TimeoutError as error:
            seen.append(str(error).split(" ", 2)[2])
        return seen

    async with working(with_worker(fast, max_attempts=1), add, fail, total):
        assert await asyncio.to_thread(use) == [
            *[3, 9, True, JobFailed, JobCancelled, ["succeeded"], "succeeded"],
            "has not ended within 0 s; it continues",
        ]


async def test_threads_share_a_sync_client(sync: SyncClient, redis: Redis) -> None:
    together = threading.Barrier(8)

    def enqueue(number: int) -> list[str]:
        together.wait(30)
        return [sync.enqueue(add, number).id for _ in range(25)]

    with ThreadPoolExecutor(8) as threads:
        ids = [
            run_id for some in await asyncio.to_thread(lambda: list(threads.map(enqueue, range(8)))) for run_id in some
        ]
    assert len(set(ids)) == 200
    assert {name.decode() for name in await redis.zrange("arq:queue", 0, -1)} == set(ids)
