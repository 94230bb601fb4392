"""Durable steps: each result once, in the ledger; sleeps that give the slot back; and what a step refuses."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.attempt.step_functions import calls, make_job, note
from tests.attempt.step_killed import STEPS
from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.command_line import CommandLine
from tests.support.contexts import MakeContext
from tests.support.kills import run_under_kills
from tests.support.workers import with_worker, working
from worker import Client, JobContext, JobFailed, Settings, job
from worker.attempt.control import NoControl
from worker.batch.transaction import BatchTransaction
from worker.db.engine import Database
from worker.errors import AttemptReleased, CursorMismatch, FencedOut
from worker.testing.runner import JobRunner


async def add_author(session: AsyncSession, number: int) -> int:
    """Insert an author."""
    calls.append(number)
    await session.execute(insert(Author).values(id=number, name="", region=0, code=str(number), seen=0))
    return number


async def count_authors(database: Database) -> int:
    """Return how many authors there are."""
    async with database.connection() as connection:
        return int(await connection.scalar(select(func.count()).select_from(Author)) or 0)


async def take_over(database: Database) -> None:
    """Change the fence, as the next owner does."""
    async with database.connection() as connection:
        await connection.execute(text("UPDATE worker.run SET fence = fence + 1"))
        await connection.execute(text("UPDATE worker.step SET fence = fence + 1"))


async def test_a_finished_step_is_not_run_again(database: Database, run_job: JobRunner) -> None:
    with pytest.raises(ValueError, match="after its steps"):
        await run_job.attempt(make_job("a", "b", fails=True), "run")
    assert await run_job.attempt(make_job("a", "b", "c"), "run") == ["a", "b", "c"]
    assert calls == ["a", "b", "c"]


@dataclass
class Export:
    """A result with types that JSON does not have."""

    path: str
    day: datetime
    parts: tuple[int, ...]


async def test_a_step_returns_its_result_in_the_type_that_it_declares(database: Database, run_job: JobRunner) -> None:
    made = Export("/tmp/x", datetime(2026, 11, 26, tzinfo=UTC), (1, 2))

    async def create() -> Export:
        calls.append("create")
        return made

    def plain(first: int, *, second: int) -> tuple[int, int]:
        calls.append("plain")
        return first, second

    async def unannotated():  # type: ignore[no-untyped-def]
        return (1, 2), None, "\x00 \u2028", 1e300

    @job
    async def run(ctx: JobContext, fails: bool) -> None:
        assert await ctx.step("create", create) == made
        assert await ctx.step("plain", plain, 1, second=2) == (1, 2)
        # The first attempt gets what a later one gets.
        assert await ctx.step("unannotated", unannotated) == [[1, 2], None, "\x00 \u2028", 1e300]
        if fails:
            raise ValueError("again")

    with pytest.raises(ValueError, match="again"):
        await run_job.attempt(run, "run", True)
    await run_job.attempt(run, "run", False)
    assert calls == ["create", "plain"]


async def test_the_writes_of_a_transactional_step_commit_with_its_record(
    database: Database, run_job: JobRunner
) -> None:
    async def fail(session: AsyncSession) -> int:
        await add_author(session, 2)
        raise ValueError("the step")

    @job
    async def run(ctx: JobContext) -> int:
        await ctx.step("first", add_author, 1, transaction=True)
        with suppress(ValueError):
            await ctx.step("second", fail, transaction=True)
        return await ctx.step("third", add_author, 3, transaction=True)

    assert await run_job(run) == 3
    async with database.connection() as connection:
        assert list(await connection.scalars(select(Author.id).order_by(Author.id))) == [1, 3]


@pytest.mark.parametrize("seed", range(2))
async def test_transactional_steps_take_effect_once_under_kills(
    database: Database, settings: Settings, seed: int
) -> None:
    last = await run_under_kills(settings, "tests.attempt.step_killed", kills=6, seed=seed)
    assert last == f"done {list(range(STEPS))}"
    assert await count_authors(database) == STEPS


async def test_a_step_without_a_transaction_is_repeated_if_it_was_not_recorded(
    database: Database, context: MakeContext
) -> None:
    died = context("run")

    async def note_and_lose_the_run(value: int) -> int:
        calls.append(value)
        if len(calls) == 1:
            await take_over(database)
        return value

    with pytest.raises(FencedOut):
        await died.step("other", note_and_lose_the_run, 1)
    again = context("run")
    assert await again.step("other", note_and_lose_the_run, 2) == 2
    assert calls == [1, 2]


async def test_the_writes_of_a_replaced_owner_are_rolled_back(database: Database, context: MakeContext) -> None:
    stale = context("run")

    async def write_and_lose_the_run(session: AsyncSession) -> int:
        await take_over(database)
        return await add_author(session, 1)

    with pytest.raises(FencedOut):
        await stale.step("mine", write_and_lose_the_run, transaction=True)
    assert await count_authors(database) == 0


@pytest.mark.parametrize("takes_effect", [True, False])
async def test_a_commit_without_an_answer_is_looked_up_in_the_ledger(
    database: Database, context: MakeContext, monkeypatch: pytest.MonkeyPatch, takes_effect: bool
) -> None:
    commit, commits = BatchTransaction.commit, [0]

    async def lose_the_answer(self: BatchTransaction, *given: Any, **options: Any) -> None:
        commits[0] += 1
        if commits[0] != 2:  # the first one records that the step begins
            return await commit(self, *given, **options)
        if takes_effect:
            await commit(self, *given, **options)
        raise ConnectionResetError

    monkeypatch.setattr(BatchTransaction, "commit", lose_the_answer)
    first = context("run")
    if takes_effect:
        assert await first.step("add", add_author, 1, transaction=True) == 1
    else:
        with pytest.raises(ConnectionResetError):
            await first.step("add", add_author, 1, transaction=True)
        assert await count_authors(database) == 0
    await first._attempt.close()
    assert await context("run").step("add", add_author, 1, transaction=True) == 1
    assert await count_authors(database) == 1
    assert calls == [1] if takes_effect else [1, 1]


async def test_helpers_of_a_walk_get_the_results_of_its_run(client: Client, fast: Settings, database: Database) -> None:
    await fill_authors(database, 200)

    @job
    async def walk(ctx: JobContext) -> int:
        token = await ctx.step("token", note, "token")
        await ctx.sleep(0)
        async for batch in ctx.chunks(select(Author), size=5, parallel=3):
            for author in batch:
                author.name, author.seen = token, author.seen + 1
        return await ctx.step("count", note, ctx.rows_done)

    async with working(with_worker(fast, max_jobs=3), walk):
        assert await (await client.enqueue(walk)).result(timeout=120) == 200
    assert calls == ["token", 200]
    async with database.connection() as connection:
        assert list(await connection.execute(select(Author.name, Author.seen).distinct())) == [("token", 1)]


# --- the order


@pytest.mark.parametrize(("names", "found"), [("ba", "b"), ("anb", "a, n"), ("b", "b"), ("nab", "n")])
async def test_a_changed_order_of_finished_steps_is_an_error(
    database: Database, run_job: JobRunner, names: str, found: str
) -> None:
    with pytest.raises(ValueError, match="after its steps"):
        await run_job.attempt(make_job("a", "b", fails=True), "run")
    with pytest.raises(CursorMismatch) as raised:
        await run_job.attempt(make_job(*names), "run")
    assert "in the ledger: a, b\n" in str(raised.value)
    assert f"in the code:   {found}\n" in str(raised.value)
    assert "worker retry run --from-start" in str(raised.value)
    assert "n" not in calls  # found before any function runs


async def test_a_failed_step_whose_error_the_job_handles_runs_again(database: Database, run_job: JobRunner) -> None:
    async def fail() -> None:
        calls.append("fail")
        raise ValueError("the service")

    @job
    async def run(ctx: JobContext, fails: bool) -> None:
        with suppress(ValueError):
            await ctx.step("call", fail)
        await ctx.step("instead", note, "instead")
        if fails:
            raise KeyError("again")

    with pytest.raises(KeyError):
        await run_job.attempt(run, "run", True)
    await run_job.attempt(run, "run", False)
    assert calls == ["fail", "instead", "fail"]


async def test_a_step_that_was_a_loop_is_an_error(database: Database, context: MakeContext) -> None:
    await fill_authors(database, 3)
    ctx = context("run")
    async for _ in ctx.chunks(select(Author.id), name="one"):
        pass
    await ctx.step("two", note, 2)
    again = context("run")
    with pytest.raises(CursorMismatch, match=r"is a loop \(chunks\) in the ledger, and a step in the code"):
        await again.step("one", note, 1)
    other = context("run")
    with pytest.raises(CursorMismatch, match="of another walk"):
        async for _ in other.chunks(select(Author.id), name="two"):
            pass


# --- refusals


# --- sleeps


# --- operators


class Draining(NoControl):
    """A worker that drains."""

    draining = True  # type: ignore[assignment]


async def test_a_drain_ends_the_attempt_before_the_next_step(database: Database, context: MakeContext) -> None:
    with pytest.raises(AttemptReleased, match="drain"):
        await context("run", control=Draining()).step("one", note, 1)
    assert calls == []


@job(timeout=0.2, max_attempts=1)
async def hang_in_a_step(ctx: JobContext) -> None:
    """Hang in the second step."""
    await ctx.step("one", note, 1)
    await ctx.step("two", asyncio.Event().wait)


async def test_the_timeout_of_a_job_holds_for_a_step(client: Client, fast: Settings, database: Database) -> None:
    async with working(fast, hang_in_a_step):
        run = await client.enqueue(hang_in_a_step)
        with pytest.raises(JobFailed, match=r"took longer than 0\.2 s"):
            await run.result(timeout=120)


async def test_a_run_of_quarantined_rows_takes_the_results_of_its_run(
    client: Client, fast: Settings, database: Database, cli: CommandLine, redis: Redis
) -> None:
    await fill_authors(database, 4)
    broken = [2]

    @job
    async def quarantine(ctx: JobContext) -> None:
        token = await ctx.step("token", note, "token")
        await ctx.sleep(0)
        async for batch in ctx.chunks(select(Author), size=1, name="walk", on_error="quarantine", quarantine_limit=0.9):
            for author in batch:
                if author.id in broken:
                    raise ValueError("broken")
                author.name = token

    async with working(fast, quarantine):
        run = await client.enqueue(quarantine)
        await run.result(timeout=120)
        broken.clear()
        again = (await cli("retry", run.id, "--quarantined")).stdout.strip()
        await client.run(again).result(timeout=120)
    assert calls == ["token"]
    async with database.connection() as connection:
        assert set(await connection.scalars(select(Author.name))) == {"token"}


async def test_runs_show_lists_steps_with_times_and_results(
    cli: CommandLine, database: Database, run_job: JobRunner
) -> None:
    hostile = "[red]\x1b[31m\nx" + "y" * 300

    @job
    async def run(ctx: JobContext) -> None:
        await ctx.step("show [b]me[/b]", note, hostile)
        await ctx.sleep(0)
        await ctx.step("fail", lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        await run_job.attempt(run, "run")
    shown = (await cli("runs", "show", "run")).stdout
    assert "\x1b" not in shown and "show [b]me[/b]" in shown and "[red]\\u001b" in shown
    assert "until " in shown and "not finished" in shown and "--json shows all" in shown
    steps = json.loads((await cli("runs", "show", "run", "--json")).stdout)["steps"]
    assert json.loads(steps[0]["result"]) == hostile
    assert [step["done"] for step in steps] == [True, True, False]
