"""`async with ctx.chunks(...) as batches` on every Python, and a plain `async for` on a Python that hides its exit."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from tests.batch.test_source import Numbers
from tests.models import Author, authors
from tests.support.authors import count_seen
from tests.support.contexts import MakeContext
from worker import JobContext, LonghaulError
from worker.batch import Batch, Walk, loop_exit
from worker.db.engine import Database

Start = Callable[[JobContext, Path], Walk[Any]]

LOOPS: dict[str, Start] = {
    "chunks": lambda ctx, path: ctx.chunks(select(Author.id), size=10),
    "skip_locked": lambda ctx, path: ctx.chunks(select(Author.id), size=10, skip_locked=True),
    "unlocked": lambda ctx, path: ctx.chunks(select(Author.id), size=10, lock=False),
    "stream": lambda ctx, path: ctx.stream(select(Author.id).order_by(Author.id), size=10),
    "lines": lambda ctx, path: ctx.lines(path, size=10),
    "walk": lambda ctx, path: ctx.walk(Numbers(50), size=10),
}


@pytest.fixture
async def path(context: MakeContext, tmp_path: Path) -> Path:
    """Fifty rows, and their keys in a file."""
    await context().bulk.insert(Author, authors(50))
    found = tmp_path / "keys.txt"
    found.write_text("\n".join(str(number) for number in range(1, 51)))
    return found


async def mark(batch: Batch[Any]) -> None:
    """Count each row of a batch."""
    await batch.bulk.update(Author, [{"id": int(key), "seen": 1} for key in batch])


async def take_two(ctx: JobContext, path: Path, loop: Start) -> None:
    async with loop(ctx, path) as batches:
        async for batch in batches:
            await mark(batch)
            if batch.number == 2:
                break


@pytest.mark.parametrize("shows_exit", [True, False])
@pytest.mark.parametrize("loop", LOOPS)
async def test_block_commits_a_break_at_its_end(
    context: MakeContext, database: Database, path: Path, loop: str, shows_exit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_exit, "shows_exit", shows_exit)
    ctx = context("run")
    await take_two(ctx, path, LOOPS[loop])
    assert await count_seen(database) == {0: 30, 1: 20}  # before the job has returned
    await ctx._attempt.succeed()
    run = await ctx._attempt.durable_run()
    assert [step.done for step in run.steps.values()] == [True]


@pytest.mark.parametrize("shows_exit", [True, False])
@pytest.mark.parametrize("loop", LOOPS)
async def test_block_rolls_back_an_exception_and_lets_it_pass(
    context: MakeContext, database: Database, path: Path, loop: str, shows_exit: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_exit, "shows_exit", shows_exit)
    ctx = context("run")
    with pytest.raises(ValueError, match="of the body"):
        async with LOOPS[loop](ctx, path) as batches:
            async for batch in batches:
                await mark(batch)
                if batch.number == 3:
                    raise ValueError("of the body")
    assert await count_seen(database) == {0: 30, 1: 20}
    with pytest.raises(LonghaulError):
        await ctx._attempt.succeed()
    await ctx._attempt.close()
    again = context("run")
    async with LOOPS[loop](again, path) as batches:
        async for batch in batches:
            await mark(batch)
    await again._attempt.succeed()
    assert await count_seen(database) == {1: 50}


async def test_block_around_a_generator_commits_a_break(context: MakeContext, database: Database, path: Path) -> None:
    async def around(batches: Walk[int]) -> AsyncIterator[Batch[int]]:
        async for batch in batches:
            yield batch

    ctx = context("run")
    async with ctx.chunks(select(Author.id), size=10) as batches:
        async for batch in around(batches):
            await mark(batch)
            break
    await ctx._attempt.succeed()
    assert await count_seen(database) == {0: 40, 1: 10}


async def test_exception_that_is_caught_inside_the_block_is_not_committed(
    context: MakeContext, database: Database, path: Path
) -> None:
    ctx = context("run")
    with pytest.raises(LonghaulError, match="an exception ended the loop"):
        async with ctx.chunks(select(Author.id), size=10) as batches:
            try:
                async for batch in batches:
                    await mark(batch)
                    raise ValueError
            except ValueError:
                pass
    await ctx._attempt.fail()
    assert await count_seen(database) == {0: 50}


async def test_another_loop_may_follow_a_block(context: MakeContext, database: Database, path: Path) -> None:
    ctx = context("run")
    await take_two(ctx, path, LOOPS["chunks"])
    assert await ctx.sweep(update(Author).where(Author.seen == 1).values(seen=2)) == 20
    await ctx._attempt.succeed()


async def test_plain_break_on_an_unknown_interpreter_is_rolled_back_and_names_the_cure(
    context: MakeContext, database: Database, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_exit, "shows_exit", False)
    ctx = context("run")
    async for batch in ctx.chunks(select(Author.id), size=10):
        await mark(batch)
        if batch.number == 3:
            break
    with pytest.raises(LonghaulError, match=r"does not show .* `async with ctx\.chunks\(\.\.\.\) as batches"):
        await ctx._attempt.succeed()
    assert await count_seen(database) == {0: 30, 1: 20}


def interpreters() -> list[str]:
    """Return the Pythons of this machine whose exits are known."""
    found = {f"3.{sys.version_info[1]}": sys.executable}
    for minor in (11, 12, 13):
        version = f"3.{minor}"
        known = [*sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python")), shutil.which(f"python{version}")]
        for python in known:
            if python:
                found.setdefault(version, str(python))
    return list(found.values())


@pytest.mark.parametrize("python", interpreters())
async def test_exit_is_told_by_each_known_interpreter(python: str) -> None:
    probe = Path(__file__).parent / "loop_exit_probe.py"
    process = await asyncio.create_subprocess_exec(python, "-I", str(probe), stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    assert process.returncode == 0
    told = json.loads(out)
    assert told["shows_exit"] is True
    assert told["found"] == {
        "by_break": True,
        "by_return": True,
        "by_break_in_blocks": True,
        "by_break_in_a_nested_loop": True,
        "by_error": False,
        "by_caught_error": False,
        "by_error_of_a_call": False,
        "by_error_and_return": False,
    }
