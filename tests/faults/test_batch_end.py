"""Whatever fails at the end of a batch, and at any point of it, each row is processed once.

A batch ends with its writes, the checkpoint, and COMMIT. The tests lose the connection, lose an answer, cancel a
statement, or cancel the task, at the n-th message or the n-th suspension of that end; with `-m long`, n takes all
values; else some of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Generator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import Select, event, make_url, select, update
from sqlalchemy.orm import Session

from tests.batch.test_source import Numbers
from tests.models import Author
from tests.support.authors import count_seen, fill_authors
from tests.support.postgres_proxy import Harm, PostgresProxy, postgres_proxy
from worker import Batch, Job, JobContext, Settings, job
from worker.attempt.control import NoControl
from worker.db.engine import Database
from worker.errors import AlreadyFinished
from worker.testing.runner import JobRunner

ROWS, SIZE = 30, 10
LIMIT_SECONDS = 120
KEYS: Select[Any] = select(Author.id).order_by(Author.id)
KINDS = ["objects", "columns", "unlocked", "skip_locked", "stream", "lines", "walk", "sweep"]
QUARANTINE: dict[str, Any] = {"on_error": "quarantine", "quarantine_limit": ROWS}

#: Called in the second batch, when its writes are done.
at_the_end: list[Callable[[], None]] = []


async def count(batch: Batch[Any]) -> None:
    keys = [int(getattr(row, "id", row)) for row in batch]
    await batch.session.execute(update(Author).where(Author.id.in_(keys)).values(seen=Author.seen + 1))
    signal(batch.number)


def signal(number: int) -> None:
    if number == 2:
        for call in at_the_end:
            call()


@job
async def objects(ctx: JobContext, path: str) -> int:
    async for batch in ctx.chunks(select(Author), size=SIZE, **QUARANTINE):
        for author in batch:
            author.seen += 1
        signal(batch.number)
    return ctx.rows_done


@job
async def columns(ctx: JobContext, path: str) -> int:
    async for batch in ctx.chunks(select(Author.id), size=SIZE, **QUARANTINE):
        await count(batch)
    return ctx.rows_done


@job
async def unlocked(ctx: JobContext, path: str) -> int:
    async for batch in ctx.chunks(select(Author.id), size=SIZE, lock=False, **QUARANTINE):
        await count(batch)
    return ctx.rows_done


@job
async def skip_locked(ctx: JobContext, path: str) -> int:
    async for batch in ctx.chunks(select(Author.id), size=SIZE, skip_locked=True, **QUARANTINE):
        await count(batch)
    return ctx.rows_done


@job
async def stream(ctx: JobContext, path: str) -> int:
    async for batch in ctx.stream(KEYS, size=SIZE, **QUARANTINE):
        await count(batch)
    return ctx.rows_done


@job
async def lines(ctx: JobContext, path: str) -> int:
    async for batch in ctx.lines(path, size=SIZE):
        await count(batch)
    return ctx.rows_done


@job
async def walk(ctx: JobContext, path: str) -> int:
    async for batch in ctx.walk(Numbers(ROWS), size=SIZE, **QUARANTINE):
        await count(batch)
    return ctx.rows_done


@job
async def sweep(ctx: JobContext, path: str) -> int:
    ctx._attempt.control = SignalAfterOne()
    return await ctx.sweep(update(Author).values(seen=Author.seen + 1), size=SIZE)


class SignalAfterOne(NoControl):
    """A sweep has no body: its second range begins with the report of the first."""

    def report(self, progress: Any, rows: int) -> None:
        signal(progress.batches + 1)


JOBS: dict[str, Job[..., Any]] = {
    "objects": objects,
    "columns": columns,
    "unlocked": unlocked,
    "skip_locked": skip_locked,
    "stream": stream,
    "lines": lines,
    "walk": walk,
    "sweep": sweep,
}


class Scene:
    """A run through the proxy."""

    def __init__(self, database: Database, runner: JobRunner, proxy: PostgresProxy, path: Path) -> None:
        self.database = database
        self.runner = runner
        self.proxy = proxy
        self.path = str(path)

    async def fill(self) -> None:
        async with self.database.transaction() as session:
            await session.execute(Author.__table__.delete())  # type: ignore[attr-defined]
        await fill_authors(self.database, ROWS)

    async def attempt(self, kind: str, run_id: str) -> int:
        done: int = await self.runner.attempt(JOBS[kind], run_id, path=self.path)
        return done

    async def attempt_until_done(self, kind: str, run_id: str) -> None:
        """Attempt the run as a worker does, until it succeeds."""
        for _ in range(6):
            try:
                done = await self.attempt(kind, run_id)
            except AlreadyFinished:
                break  # it was cancelled after its end was recorded
            except Exception:
                continue
            assert done == ROWS
            break
        else:
            pytest.fail(f"{kind}: not done in six attempts")
        assert await count_seen(self.database) == {1: ROWS}, kind


@pytest_asyncio.fixture
async def scene(database: Database, settings: Settings, tmp_path: Path) -> AsyncIterator[Scene]:
    """A table, a file of its keys, and a database behind the proxy."""
    path = tmp_path / "keys.txt"
    path.write_text("\n".join(str(number) for number in range(1, ROWS + 1)))
    url = make_url(settings.database.url)
    assert url.port is not None
    async with postgres_proxy(url.port) as proxy:
        there = url.set(port=proxy.port).render_as_string(hide_password=False)
        changes = {"url": there, "answer_check_seconds": 0.1}
        through = settings.model_copy(update={"database": settings.database.model_copy(update=changes)})
        behind = Database(through, "test")
        yield Scene(database, JobRunner(behind, through), proxy, path)
        await behind.close()
    at_the_end.clear()


async def harm(scene: Scene, kind: str, at: int | None, how: Harm) -> int:
    """Run a job with a fault in one message of its second batch. Return the number of messages until its end."""
    await scene.fill()
    proxy = scene.proxy
    proxy.has_harmed = False
    once = iter([None])

    def arm() -> None:
        if next(once, 1) is None:
            proxy.arm(at, how)

    at_the_end[:] = [arm]
    await scene.attempt_until_done(kind, f"{kind}-{how}-{at}")
    proxy.disarm()
    assert proxy.has_harmed == (at is not None and at <= proxy.count) or at is None
    return proxy.count


async def all_harms(scene: Scene, kind: str, how: Harm, *, every: int) -> None:
    messages = await harm(scene, kind, None, how)
    assert messages > 5
    for at in range(1, messages + 1, every):
        await harm(scene, kind, at, how)


@pytest.mark.parametrize("how", ["lose_answer", "cancel"])
@pytest.mark.parametrize("kind", KINDS)
async def test_harm_in_the_end_of_a_batch_doubles_no_row(scene: Scene, kind: str, how: Harm) -> None:
    await all_harms(scene, kind, how, every=9)


@pytest.mark.parametrize("how", ["swallow", "swallow_answer"])
async def test_connection_that_goes_half_open_in_the_end_of_a_batch_doubles_no_row(scene: Scene, how: Harm) -> None:
    async with asyncio.timeout(LIMIT_SECONDS):
        await all_harms(scene, "objects", how, every=7)


@pytest.mark.long
@pytest.mark.parametrize("how", ["lose", "lose_answer", "cancel", "swallow", "swallow_answer"])
@pytest.mark.parametrize("kind", KINDS)
async def test_harm_at_each_message_of_the_end_of_a_batch_doubles_no_row(scene: Scene, kind: str, how: Harm) -> None:
    await all_harms(scene, kind, how, every=1)


class CancelAt:
    """Awaits a coroutine, and cancels the task at the n-th suspension after `arm`."""

    def __init__(self, coroutine: Any, at: int) -> None:
        self._coroutine = coroutine
        self._at = at
        self.count = 0
        self.is_armed = False

    def arm(self) -> None:
        self.is_armed = True

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self._coroutine.__await__()
        send, value = inner.send, None
        while True:
            try:
                waits_for = send(value)
            except StopIteration as end:
                return end.value
            if self.is_armed:
                self.count += 1
                if self.count == self._at:
                    task = asyncio.current_task()
                    assert task is not None
                    task.cancel()
            try:
                value = yield waits_for
                send = inner.send
            except BaseException as error:
                value, send = error, inner.throw


async def cancel(scene: Scene, kind: str, at: int, *, as_timeout: bool) -> int:
    """Run a job, cancelled at one suspension at the end of its second batch. Return the suspensions until its end."""
    await scene.fill()
    run_id = f"{kind}-{at}-{as_timeout}"

    async def attempt() -> int:
        original = JOBS[kind]

        async def timed(ctx: JobContext, path: str) -> Any:
            try:
                return await original.function(ctx, path)
            except asyncio.CancelledError:
                task = asyncio.current_task()
                assert task is not None
                task.uncancel()
                raise TimeoutError("of the job's own") from None

        if not as_timeout:
            return await scene.attempt(kind, run_id)
        return await scene.runner.attempt(job(name=original.name)(timed), run_id, path=scene.path)

    stepped = CancelAt(attempt(), at)
    at_the_end[:] = [stepped.arm]

    async def drive() -> Any:
        return await stepped

    task = asyncio.create_task(drive())
    await asyncio.wait({task})
    at_the_end.clear()
    if task.cancelled() or task.exception() is not None:
        await scene.attempt_until_done(kind, run_id)
    assert await count_seen(scene.database) == {1: ROWS}, (kind, at)
    return stepped.count


async def all_cancels(scene: Scene, kind: str, *, as_timeout: bool, every: int) -> None:
    suspensions = await cancel(scene, kind, 10**6, as_timeout=as_timeout)
    assert suspensions > 3
    for at in range(1, suspensions + 1, every):
        await cancel(scene, kind, at, as_timeout=as_timeout)


@pytest.mark.parametrize("as_timeout", [True, False])
@pytest.mark.parametrize("kind", ["objects", "columns", "stream", "sweep"])
async def test_cancellation_in_the_end_of_a_batch_doubles_no_row(scene: Scene, kind: str, as_timeout: bool) -> None:
    await all_cancels(scene, kind, as_timeout=as_timeout, every=7)


@pytest.mark.long
@pytest.mark.parametrize("as_timeout", [True, False])
@pytest.mark.parametrize("kind", KINDS)
async def test_cancellation_at_each_await_of_the_end_of_a_batch_doubles_no_row(
    scene: Scene, kind: str, as_timeout: bool
) -> None:
    await all_cancels(scene, kind, as_timeout=as_timeout, every=1)


@pytest.mark.parametrize("error", [ConnectionError("the search index is away"), ValueError("no document")])
async def test_listener_that_raises_after_commit_doubles_no_row(scene: Scene, error: Exception) -> None:
    await scene.fill()
    calls = 0

    def tell(session: Session) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise error

    event.listen(Session, "after_commit", tell)
    try:
        await scene.attempt_until_done("objects", "listener")
    finally:
        event.remove(Session, "after_commit", tell)
    assert calls > 2
