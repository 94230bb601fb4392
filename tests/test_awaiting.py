"""A forgotten `await` of a public coroutine method is an error of its batch or job; elsewhere Python warns."""

from __future__ import annotations

import asyncio
import inspect
import warnings
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest
from sqlalchemy import select, update

from tests.models import Author
from tests.support.authors import count_seen, fill_authors
from tests.support.workers import working
from worker import Client, JobContext, JobFailed, Settings, job
from worker.awaiting import TrackedCalls, track_awaits, tracked_calls
from worker.batch.batch import Batch
from worker.batch.bulk.tracked import TrackedBulk
from worker.db.engine import Database
from worker.errors import UsageError
from worker.queue.group import Group
from worker.queue.run import Run
from worker.testing.runner import JobRunner

CLASSES = {"client": Client, "run": Run, "group": Group, "batch": Batch}


def public_coroutine_methods() -> list[tuple[str, str]]:
    """Return all public coroutine methods that a job can reach from a client and a batch."""
    return [
        (prefix, name)
        for prefix, cls in CLASSES.items()
        for name, member in inspect.getmembers(cls)
        if not name.startswith("_") and inspect.iscoroutinefunction(inspect.unwrap(member))
    ]


def call(prefix: str, name: str) -> Coroutine[Any, Any, Any]:
    """Call a method of an object without a state: the body of a coroutine does not run before it is awaited."""
    method = getattr(object.__new__(CLASSES[prefix]), name)
    parameters = inspect.signature(method).parameters.values()
    empty = [one for one in parameters if one.default is one.empty and one.kind is not one.VAR_POSITIONAL]
    given = [None for one in empty if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    named = {one.name: None for one in empty if one.kind is one.KEYWORD_ONLY}
    found: Coroutine[Any, Any, Any] = method(*given, **named)
    return found


@contextmanager
def inside_a_job() -> Iterator[TrackedCalls]:
    """Track calls as in a job."""
    calls = TrackedCalls()
    token = tracked_calls.set(calls)
    try:
        yield calls
    finally:
        tracked_calls.reset(token)


def test_public_coroutine_methods_are_found() -> None:
    found = {f"{prefix}.{name}" for prefix, name in public_coroutine_methods()}
    assert {"client.enqueue", "client.group", "run.result", "group.progress", "batch.gather"} <= found


@pytest.mark.parametrize(("prefix", "name"), public_coroutine_methods())
async def test_forgotten_await_inside_a_job_is_an_error(prefix: str, name: str) -> None:
    with inside_a_job() as calls:
        call(prefix, name)
        with pytest.raises(UsageError, match=rf"{prefix}\.{name}\(\) was called without `await`"):
            await calls.check_awaited()
        await calls.check_awaited()  # it is reported once


@pytest.mark.parametrize(("prefix", "name"), public_coroutine_methods())
def test_forgotten_await_outside_of_a_job_has_pythons_own_warning(prefix: str, name: str) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        call(prefix, name)  # the coroutine ends here, with its only reference
    qualified = inspect.unwrap(getattr(CLASSES[prefix], name)).__qualname__
    assert f"coroutine '{qualified}' was never awaited" in [str(one.message) for one in found]


def test_mock_of_a_client_has_coroutine_methods() -> None:
    assert isinstance(MagicMock(spec=Client).enqueue, AsyncMock)


def test_context_and_bulk_have_no_coroutine_method_that_is_not_tracked() -> None:
    """They return `TrackedCall` for themselves; see tests/batch/test_faults.py."""
    for cls in (JobContext, TrackedBulk):
        plain = [name for name, _ in inspect.getmembers(cls, inspect.iscoroutinefunction) if not name.startswith("_")]
        assert plain == []


async def test_calls_that_were_awaited_in_any_way_are_no_error() -> None:
    @track_awaits("box")
    class Box:
        async def open(self) -> int:
            return 1

    with inside_a_job() as calls:
        box = Box()
        assert await box.open() == 1
        assert await asyncio.gather(box.open(), box.open()) == [1, 1]
        assert await asyncio.wait_for(box.open(), 60) == 1
        left = asyncio.create_task(box.open())  # begins after the job has returned
        await calls.check_awaited()
        assert await left == 1
        before = box.open()
        mark = calls.mark
        await calls.check_awaited(mark)
        assert await before == 1


# --- in real jobs


@job
async def echo(ctx: JobContext, n: int) -> int:
    return n


async def forget_enqueue(client: Client) -> None:
    client.enqueue(echo, n=1)  # type: ignore[unused-coroutine]


async def forget_many(client: Client) -> None:
    client.enqueue_many(echo, [{"n": 1}])  # type: ignore[unused-coroutine]


async def forget_group(client: Client) -> None:
    client.group([echo.call(n=1)])  # type: ignore[unused-coroutine]


async def forget_cancel(client: Client) -> None:
    client.run("x").cancel()  # type: ignore[unused-coroutine]


async def leave_a_task(client: Client) -> None:
    left.append(asyncio.create_task(client.enqueue(echo, n=7)))  # type: ignore[arg-type]


clients: list[Client] = []
left: list[asyncio.Task[Any]] = []
FORGETFUL: dict[str, Callable[[Client], Coroutine[Any, Any, None]]] = {
    "client.enqueue": forget_enqueue,
    "client.enqueue_many": forget_many,
    "client.group": forget_group,
    "run.cancel": forget_cancel,
}


@job(max_attempts=1)
async def forget(ctx: JobContext, what: str) -> None:
    await (FORGETFUL | {"task": leave_a_task})[what](clients[0])


@job(max_attempts=1, run_in="thread")
def forget_in_a_thread(ctx: JobContext) -> None:
    clients[0].enqueue(echo, n=1)  # type: ignore[unused-coroutine]


@pytest.mark.usefixtures("database")
async def test_job_that_forgets_an_await_is_dead(fast: Settings, client: Client) -> None:
    clients[:] = [client]
    async with working(fast, forget, forget_in_a_thread, echo):
        for what in FORGETFUL:
            with pytest.raises(JobFailed, match=rf"{what}\(\) was called without `await`"):
                await (await client.enqueue(forget, what=what)).result(timeout=120)
        with pytest.raises(JobFailed, match=r"client.enqueue\(\) was called without `await`"):
            await (await client.enqueue(forget_in_a_thread)).result(timeout=120)
        await (await client.enqueue(forget, what="task")).result(timeout=120)
        assert await (await left.pop()).result(timeout=120) == 7


@job(max_attempts=1)
async def forget_in_a_batch(ctx: JobContext) -> None:
    async for batch in ctx.chunks(select(Author.id), size=10):
        await batch.session.execute(update(Author).where(Author.id.in_(list(batch))).values(seen=1))
        clients[0].enqueue(echo, n=1)  # type: ignore[unused-coroutine]


@job(max_attempts=1)
async def forget_gather(ctx: JobContext) -> None:
    async def fetch(key: int, row_key: str) -> int:
        return key

    async for batch in ctx.chunks(select(Author.id), size=10, lock=False):
        batch.gather(fetch)  # type: ignore[unused-coroutine]
        await batch.session.execute(update(Author).where(Author.id.in_(list(batch))).values(seen=1))


@pytest.mark.parametrize(("one", "name"), [(forget_in_a_batch, "client.enqueue"), (forget_gather, "batch.gather")])
async def test_batch_that_forgets_an_await_is_rolled_back(
    database: Database, settings: Settings, client: Client, one: Any, name: str
) -> None:
    clients[:] = [client]
    await fill_authors(database, 20)
    with pytest.raises(UsageError, match=rf"{name}\(\) was called without `await`"):
        await JobRunner(database, settings)(one)
    assert await count_seen(database) == {0: 20}
