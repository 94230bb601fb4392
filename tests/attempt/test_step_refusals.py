"""Names, results and functions that `ctx.step` refuses."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from tests.attempt.step_functions import calls, make_job, note
from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.contexts import MakeContext
from worker import JobContext, job
from worker.db.engine import Database
from worker.errors import UsageError
from worker.ledger import Ledger
from worker.testing.runner import JobRunner


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
