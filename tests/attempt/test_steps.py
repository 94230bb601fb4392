"""Durable steps: each result once, in the ledger; sleeps that give the slot back; and what a step refuses."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from tests.attempt.step_killed import STEPS
from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.command_line import CommandLine
from tests.support.contexts import MakeContext
from tests.support.kills import run_under_kills
from tests.support.waiting import until_true
from tests.support.workers import with_worker, working
from worker import Client, JobContext, JobFailed, Settings, job
from worker.attempt.control import NoControl
from worker.batch.transaction import BatchTransaction
from worker.db.engine import Database
from worker.errors import AttemptReleased, CursorMismatch, FencedOut, UsageError
from worker.ledger import Ledger
from worker.testing.runner import JobRunner

calls: list[Any] = []


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Clear the records of the previous test."""
    calls.clear()


async def note(value: Any) -> Any:
    """Record the call."""
    calls.append(value)
    return value


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


def make_job(*names: str, fails: bool = False) -> Any:
    """Make a job that runs steps of these names, and then may fail."""

    async def steps(ctx: JobContext) -> list[Any]:
        found = [await ctx.step(name, note, name) for name in names]
        if fails:
            raise ValueError("after its steps")
        return found

    return job(name="steps")(steps)


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
        assert await (await client.enqueue(walk)).result(timeout=60) == 200
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


async def test_names_are_unique_in_a_run(database: Database, run_job: JobRunner) -> None:
    with pytest.raises(UsageError, match="two loops or steps are named 'a'"):
        await run_job(make_job("a", "a"))


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb", None, 7])
async def test_names_are_short_and_printable(database: Database, context: MakeContext, name: Any) -> None:
    with pytest.raises(UsageError, match="a name has 1 to 200 printable characters"):
        await context().step(name, note, 1)


async def no_json() -> Any:
    """Return what JSON has no form for."""
    calls.append("no_json")
    return object()


async def an_author() -> Author:
    """Return a mapped object."""
    calls.append("an_author")
    return Author()


async def too_large() -> str:
    """Return more than 1 MB."""
    return "é" * 524_289


async def of_another_type() -> int:
    """Return a text."""
    return "a"  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            no_json,
            r"cannot be converted to JSON.*return texts, numbers, lists, or a pydantic model, and the key of a row",
        ),
        (an_author, r"use types that pydantic knows, e.g. an id instead of an ORM object"),
        (too_large, r"1,048,580 bytes, over worker.max_result_bytes .1,048,576.: write large results to a table"),
        (of_another_type, r"of type str does not fit `-> int`"),
        ("text", r"str is no function: pass the function and its arguments"),
    ],
)
async def test_a_result_that_cannot_be_recorded_is_an_error(
    database: Database, context: MakeContext, function: Any, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        await context("run").step("one", function)
    assert "an_author" not in calls  # a type is checked before the effect
    [run] = await Ledger(database).list_runs(run_id="run") or [None]
    assert run is None or not any(step.done for step in run.steps)


async def test_a_called_function_is_refused(database: Database, context: MakeContext) -> None:
    with pytest.raises(UsageError, match="coroutine is no function: pass the function and its arguments"):
        await context().step("one", note(1))  # type: ignore[call-overload]
    assert calls == []


async def test_a_forgotten_await_is_an_error_of_the_job(database: Database, run_job: JobRunner) -> None:
    @job
    async def forget(ctx: JobContext, how: str) -> None:
        if how == "step":
            ctx.step("one", note, 1)
        elif how == "sleep":
            ctx.sleep(1)
        else:
            ctx.sleep_until(datetime.now(UTC))

    for how in ("step", "sleep", "sleep_until"):
        with pytest.raises(UsageError, match=rf"ctx.{how}\(\) was called without `await`"):
            await run_job(forget, how)

    @job
    async def forget_the_first(ctx: JobContext) -> None:
        ctx.step("one", note, 1)
        await ctx.step("two", note, 2)

    with pytest.raises(UsageError, match=r"ctx.step\(\) was called without `await`"):
        await run_job(forget_the_first)
    assert calls == []


async def test_steps_and_loops_run_one_after_the_other(database: Database, run_job: JobRunner) -> None:
    await fill_authors(database, 3)

    async def walk(ctx: JobContext) -> None:
        async for _ in ctx.chunks(select(Author.id)):
            pass

    @job
    async def loop_in_step(ctx: JobContext) -> None:
        await ctx.step("one", walk, ctx)

    @job
    async def step_in_step(ctx: JobContext) -> None:
        await ctx.step("one", lambda: ctx.step("two", note, 2))

    @job
    async def step_in_loop(ctx: JobContext) -> None:
        async for _ in ctx.chunks(select(Author.id)):
            await ctx.step("two", note, 2)

    @job
    async def together(ctx: JobContext) -> None:
        found = await asyncio.gather(*(ctx.step(name, note, name) for name in "ab"), return_exceptions=True)
        for error in filter(lambda one: isinstance(one, Exception), found):
            raise error

    for wrong in (loop_in_step, step_in_step, together):
        with pytest.raises(UsageError, match="is still in progress: steps and loops run one after the other"):
            await run_job(wrong)
    with pytest.raises(UsageError, match="durable loops and steps cannot be nested"):
        await run_job(step_in_loop)


async def test_a_step_cannot_end_its_own_transaction(database: Database, context: MakeContext) -> None:
    async def commit(session: AsyncSession) -> None:
        await session.commit()

    with pytest.raises(UsageError, match="inside the step 'one': it commits once, at its end"):
        await context().step("one", commit, transaction=True)
    with pytest.raises(UsageError, match="is an `async def`"):
        await context().step("one", lambda session: 1, transaction=True)


# --- sleeps


@job
async def sleep_between(ctx: JobContext, seconds: float) -> list[int]:
    """Note the attempt before and behind a sleep."""
    calls.append("called")
    await ctx.step("before", note, "before")
    await ctx.sleep(seconds)
    await ctx.step("behind", note, "behind")
    if calls.count("called") == 2:
        raise ValueError("once more: it does not sleep again")
    return [ctx.attempt, calls.count("called")]


@job
async def quick(ctx: JobContext) -> None:
    """Use the slot."""
    calls.append("quick")


async def test_a_sleep_gives_its_slot_back_and_costs_no_attempt(
    client: Client, fast: Settings, database: Database
) -> None:
    async with working(with_worker(fast, max_jobs=1), sleep_between, quick):
        began = datetime.now(UTC)
        run = await client.enqueue(sleep_between, seconds=1.5)
        await until_true(lambda: "before" in calls)
        await (await client.enqueue(quick)).result(timeout=30)
        assert await run.result(timeout=30) == [1, 3]  # the error counted none either: a step had been finished
        assert datetime.now(UTC) - began >= timedelta(seconds=1.5)
    assert calls == ["called", "before", "quick", "called", "behind", "called"]
    [found] = await Ledger(database).list_runs(run_id=run.id)
    assert [(step.name, step.kind, step.done) for step in found.steps] == [
        ("before", "step", True),
        ("sleep-1", "sleep", True),
        ("behind", "step", True),
    ]


async def test_a_restart_sleeps_only_for_the_rest(database: Database, context: MakeContext) -> None:
    with pytest.raises(AttemptReleased) as first:
        await context("run").sleep(3600)
    assert 3599 < first.value.delay_seconds <= 3600
    async with database.connection() as connection:
        await connection.execute(
            text(
                "UPDATE worker.step "
                "SET result = to_json((result::json #>> '{}')::timestamptz - interval '3000 s')::text"
            )
        )
    with pytest.raises(AttemptReleased) as second:
        await context("run").sleep(3600)
    assert 590 < second.value.delay_seconds <= 600


async def test_a_sleep_until_a_moment_that_has_passed_goes_on(database: Database, context: MakeContext) -> None:
    ctx = context()
    await ctx.sleep_until(datetime.now(UTC) - timedelta(days=1))
    await ctx.sleep(0)
    assert await ctx.step("behind", note, 1) == 1


@pytest.mark.parametrize("moment", [datetime(2026, 1, 1), datetime.max, "tomorrow", None])
async def test_a_moment_without_a_time_zone_is_refused(database: Database, context: MakeContext, moment: Any) -> None:
    with pytest.raises(UsageError, match=r"time zone|seconds from 0"):
        await context().sleep_until(moment)


@pytest.mark.parametrize("seconds", [-1, float("nan"), float("inf"), 1e12, True, "5", None])
async def test_a_sleep_of_no_number_of_seconds_is_refused(
    database: Database, context: MakeContext, seconds: Any
) -> None:
    with pytest.raises(UsageError, match="give seconds from 0 to 3660 days"):
        await context().sleep(seconds)


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
            await run.result(timeout=30)


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
        await run.result(timeout=30)
        broken.clear()
        again = (await cli("retry", run.id, "--quarantined")).stdout.strip()
        await client.run(again).result(timeout=30)
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
