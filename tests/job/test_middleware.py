"""Middleware around enqueueing and running; headers, context variables and traces that are passed with a run."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import pytest
from arq.jobs import deserialize_job_raw
from opentelemetry import trace
from redis.asyncio import Redis
from sqlalchemy import select

from tests.attempt.process_jobs import context, context_in_process, tenant
from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.workers import with_worker, working
from worker import (
    Client,
    EnqueueCall,
    JobCancelled,
    JobContext,
    JobFailed,
    Middleware,
    Retry,
    Run,
    Settings,
    job,
    propagate,
    traceparent,
    tracestate,
)
from worker.db.engine import Database
from worker.errors import RegistrationError
from worker.job.propagation import current_headers
from worker.ledger import Ledger
from worker.observe.logs import JsonFormatter
from worker.queue.commands import retry_run
from worker.testing.runner import JobRunner

pytestmark = pytest.mark.usefixtures("database")

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
seen: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_seen() -> None:
    """Clear the records of the previous test."""
    seen.clear()


class Outer(Middleware):
    """Records the calls on both sides."""

    async def enqueue(self, call: EnqueueCall, proceed: Callable[[], Awaitable[Run[Any]]]) -> Run[Any]:
        seen.append(("outer", call.job, call.arguments, call.queue))
        call.headers["mark"] = "outer"
        run = await proceed()
        seen.append(("outer", run.is_new))
        return run

    async def run(self, ctx: JobContext, proceed: Callable[[], Awaitable[Any]]) -> Any:
        seen.append(("outer runs", ctx.attempt, ctx.headers.get("mark")))
        try:
            return await proceed()
        finally:
            seen.append("outer ends")


class Inner(Middleware):
    """Records the effect of the outer middleware."""

    async def enqueue(self, call: EnqueueCall, proceed: Callable[[], Awaitable[Run[Any]]]) -> Run[Any]:
        seen.append(("inner", call.headers["mark"]))
        call.headers["mark"] += ", inner"
        return await proceed()

    async def run(self, ctx: JobContext, proceed: Callable[[], Awaitable[Any]]) -> Any:
        seen.append("inner runs")
        return f"{await proceed()}, changed"


class Refuses(Middleware):
    """Lets nothing pass."""

    async def enqueue(self, call: EnqueueCall, proceed: Callable[[], Awaitable[Run[Any]]]) -> Run[Any]:
        raise PermissionError("not today")

    async def run(self, ctx: JobContext, proceed: Callable[[], Awaitable[Any]]) -> Any:
        if ctx.attempt == 1:
            raise Retry(after=0.01)
        await proceed()
        raise ValueError("after the job")


outer = Outer()


@job
async def greet(ctx: JobContext, name: str = "you") -> str:
    """Greet."""
    seen.append(f"job for {ctx.headers.get('mark')}")
    return name


@job(max_attempts=2, backoff=0)
async def walk(ctx: JobContext) -> dict[str, str]:
    """Walk, and fail in the first attempt, so that the run is released through the ledger."""
    async for batch in ctx.chunks(select(Author), size=10):
        seen.append((ctx.attempt, batch.number, context()))
        if len(seen) == 2:
            raise ValueError("not yet")
    return context()


@job(max_attempts=1)
async def die(ctx: JobContext) -> dict[str, str]:
    """Fail at first."""
    seen.append(context())
    if len(seen) == 1:
        raise ValueError("dead")
    return context()


@job
async def context_in_task(ctx: JobContext) -> dict[str, str]:
    """Return the headers and context variables of the run."""
    found = context() | {"mark": ctx.headers.get("mark", "")}
    tenant.set("left behind")
    return found


@job
def context_in_thread(ctx: JobContext) -> dict[str, str]:
    """Return the headers and context variables in a thread."""
    found = context() | {"mark": ctx.headers.get("mark", "")}
    tenant.set("left behind")
    return found


@job
async def span_in_job(ctx: JobContext) -> str:
    """Return the parent span of the job's own spans, and of jobs that it enqueues."""
    span = trace.get_current_span().get_span_context()
    assert span.is_remote
    return current_headers()["traceparent"]


async def test_hooks_are_around_each_other_in_their_order(fast: Settings, client: Client) -> None:
    both = with_worker(fast, middleware=["tests.job.test_middleware:outer", "tests.job.test_middleware:Inner"])
    async with Client(both) as sender, working(both, greet):
        run = await sender.enqueue(greet.options(queue="arq:queue"), name="Ada")
        assert await run.result(timeout=120) == "Ada, changed"
        assert seen[:3] == [
            ("outer", "greet", {"name": "Ada"}, "arq:queue"),
            ("inner", "outer"),
            ("outer", True),
        ]
        assert seen[3:] == [("outer runs", 1, "outer, inner"), "inner runs", "job for outer, inner", "outer ends"]
        seen.clear()
        for runs in (
            await sender.enqueue_many(greet, [{"name": "a"}, {"name": "b"}]),
            [await sender.enqueue("greet", "c"), await sender.enqueue_by_name("greet", {"name": "d"})],
        ):
            for run in runs:
                await run.result(timeout=120)
        assert [one[2] for one in seen if len(one) == 4] == [{"name": "a"}, {"name": "b"}, ["c"], {"name": "d"}]
        assert seen.count("job for outer, inner") == 4


async def test_hooks_are_around_each_member_of_a_group(fast: Settings, settings: Settings, redis: Redis) -> None:
    async with Client(settings, middleware=[outer, Inner()]) as around:
        group = await around.group([greet.call(name) for name in ("a", "b")], then=greet.call("c"))
        assert [run.id for run in group.runs] == [f"{group.id}:1", f"{group.id}:2"]
        for name in ("a", "b"):
            assert ("outer", "greet", {"name": name}, "arq:queue") in seen
        async with working(fast, greet):
            assert group.callback is not None
            assert await group.callback.result(timeout=120) == "c"
    assert seen.count("job for outer, inner") == 2


async def test_an_error_around_an_enqueueing_is_the_callers_and_nothing_is_enqueued(
    settings: Settings, redis: Redis
) -> None:
    async with Client(settings, middleware=[Outer(), Refuses()]) as sender:
        for enqueue in (sender.enqueue(greet), sender.enqueue("greet"), sender.enqueue_many(greet, [{}])):
            with pytest.raises(PermissionError, match="not today"):
                await enqueue
    assert await redis.keys("arq:*") == []


async def test_an_error_around_a_run_is_that_of_the_job(fast: Settings, client: Client) -> None:
    refusing = with_worker(fast, middleware=["tests.job.test_middleware:Refuses"], max_attempts=2)
    run = await client.enqueue(greet)
    async with working(refusing, greet):
        with pytest.raises(JobFailed, match=r"ValueError: after the job \(attempt 2, the last\)"):
            await run.result(timeout=120)
    assert seen == ["job for None"]


async def test_a_hook_is_interrupted_with_its_job(fast: Settings, client: Client) -> None:
    around = with_worker(fast, middleware=["tests.job.test_middleware:outer"])
    run = await client.enqueue(waits)
    async with working(around, waits):
        async with asyncio.timeout(5):
            while "begun" not in seen:
                await asyncio.sleep(0.01)
        await run.cancel()
        with pytest.raises(JobCancelled):
            await run.result(timeout=120)
    assert seen[-1] == "outer ends"


@job
async def waits(ctx: JobContext) -> None:
    """Until it is cancelled."""
    seen.append("begun")
    await asyncio.Event().wait()


async def test_run_job_goes_through_them_as_well(database: Database, settings: Settings) -> None:
    around = with_worker(settings, middleware=["tests.job.test_middleware:Inner"])
    assert await JobRunner(database, around)(greet, "Ada") == "Ada, changed"


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("tests.job.test_middleware:nobody", "no attribute 'nobody': write module:name"),
        ("tests.nowhere:outer", "No module named 'tests.nowhere': write module:name"),
        ("tests.job.test_middleware", "write module:name"),
        ("tests.job.test_middleware:PARENT", r"is not a worker\.Middleware: derive its class from it"),
    ],
)
def test_what_is_no_middleware_is_refused(settings: Settings, place: str, message: str) -> None:
    with pytest.raises(RegistrationError, match=message):
        Client(with_worker(settings, middleware=[place]))


@pytest.mark.parametrize("of", [context_in_task, context_in_thread, context_in_process], ids=lambda one: one.name)
async def test_variables_and_trace_come_along_and_stay_with_their_run(fast: Settings, client: Client, of: Any) -> None:
    async with working(with_worker(fast, max_job_processes=1, max_threads=1), of):
        for name in ("north", ""):
            tenant.set(name)
            traceparent.set(PARENT if name else "")
            tracestate.set("vendor=1" if name else "")
            run = await client.enqueue(of)
            expected = {"tenant": name, "traceparent": PARENT, "tracestate": "vendor=1", "mark": ""}
            if not name:
                expected = dict.fromkeys(expected, "")
            assert await run.result(timeout=120) == expected
    assert tenant.get() == ""


async def test_they_survive_ledger_retries_and_dead_letters(
    fast: Settings, client: Client, redis: Redis, database: Database
) -> None:
    await fill_authors(database, 20)
    tenant.set("north")
    walked = await client.enqueue(walk)
    tenant.set("")  # a worker begins in our context
    async with working(fast, walk):
        assert (await walked.result(timeout=120))["tenant"] == "north"
    assert len(seen) >= 3 and {found["tenant"] for *_, found in seen} == {"north"}  # a failed batch comes in parts
    seen.clear()
    tenant.set("north")
    dead = await client.enqueue(die)
    tenant.set("")
    async with working(fast, die):
        with pytest.raises(JobFailed):
            await dead.result(timeout=120)
        assert await retry_run(redis, Ledger(database), dead.id, from_start=False)
        assert (await dead.result(timeout=120))["tenant"] == "north"


async def test_they_go_along_a_chain_and_to_a_group_and_what_follows_it(fast: Settings, client: Client) -> None:
    tenant.set("north")
    run = await client.enqueue(context_in_task.options(then=context_in_task.call()))
    group = await client.group([context_in_task.call()] * 2, then=context_in_task.call())
    tenant.set("")
    async with working(fast, context_in_task):
        [after] = run.next_runs
        assert group.callback is not None
        for each in (run, after, *group.runs, group.callback):
            assert (await each.result(timeout=120))["tenant"] == "north"


async def test_payloads_without_headers_are_as_they_were_and_stock_arq_reads_those_with(
    client: Client, redis: Redis
) -> None:
    plain = await client.enqueue(greet)
    assert "h" not in json.loads(await redis.get(f"arq:job:{plain.id}"))
    tenant.set("north")
    with_header = await client.enqueue(greet, name="Ada")
    raw = await redis.get(f"arq:job:{with_header.id}")
    assert json.loads(raw)["h"] == {"tenant-of-tests": "north"}
    assert deserialize_job_raw(raw, deserializer=json.loads)[:3] == ("greet", [], {"name": "Ada"})


@pytest.mark.parametrize("headers", ["[1]", '{"a": 1}'])
async def test_headers_that_are_no_texts_are_a_broken_payload(
    fast: Settings, client: Client, redis: Redis, headers: str
) -> None:
    await redis.set("arq:job:broken", f'{{"f": "greet", "h": {headers}}}')
    await redis.zadd("arq:queue", {"broken": 0})
    async with working(fast, greet):
        with pytest.raises(JobFailed, match="h is not an object of texts"):
            await client.run("broken").result(timeout=120)


@pytest.mark.parametrize("wrong", ["nonsense", PARENT.replace("b7ad6b7169203331", "0" * 16), "ff" + PARENT[2:]])
async def test_a_traceparent_that_is_none_is_left_out(fast: Settings, client: Client, wrong: str) -> None:
    traceparent.set(wrong)
    tracestate.set("vendor=1")
    run = await client.enqueue(context_in_task)
    traceparent.set("")  # the worker begins in our context
    tracestate.set("")
    async with working(fast, context_in_task):
        found = await run.result(timeout=120)
    assert (found["traceparent"], found["tracestate"]) == ("", "")


async def test_the_span_of_opentelemetry_is_the_parent(fast: Settings, client: Client) -> None:
    span = trace.SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=trace.TraceFlags(1))
    with trace.use_span(trace.NonRecordingSpan(span)):
        run = await client.enqueue(span_in_job)
    async with working(fast, span_in_job):
        assert await run.result(timeout=120) == f"00-{0xABC:032x}-{0xDEF:016x}-01"


def test_a_line_of_the_log_has_its_trace() -> None:
    record = logging.LogRecord("name", logging.INFO, "", 0, "message", (), None)
    assert "trace_id" not in json.loads(JsonFormatter().format(record))
    traceparent.set(PARENT)
    line = json.loads(JsonFormatter().format(record))
    assert (line["trace_id"], line["span_id"]) == tuple(PARENT.split("-")[1:3])
    traceparent.set("")


def test_two_variables_of_one_name_are_refused() -> None:
    assert propagate(tenant) is tenant
    with pytest.raises(RegistrationError, match="another context variable is named 'tenant-of-tests'"):
        propagate(ContextVar("tenant-of-tests", default=""))
