"""`ctx.walk`: a custom source is walked like the built-in loops."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text

from tests.models import Author, Book, authors
from tests.support.contexts import MakeContext
from worker import Bounds, JobContext, OpenStep, Page, Settings, Source, job
from worker.batch import batch_retry
from worker.batch.transaction import BatchTransaction
from worker.db.engine import Database
from worker.errors import CursorMismatch, UnsupportedStatement
from worker.ledger import Ledger
from worker.testing.runner import JobRunner


class Numbers:
    """The numbers from 1 to n. The cursor is an object, as an API may return it."""

    kind = "numbers"

    def __init__(self, last: int, *, name: str = "numbers") -> None:
        self.fingerprint = name
        self.last = last
        self.calls: list[str] = []

    async def open(self, step: OpenStep) -> Bounds:
        self.calls.append(f"open {json.dumps(step.cursor)}")
        return Bounds(total=self.last)

    async def fetch(self, transaction: BatchTransaction, cursor: Any, size: int) -> Page[int] | None:
        begin = 0 if cursor is None else cursor["done"]
        rows = list(range(begin + 1, min(begin + size, self.last) + 1))
        self.calls.append(f"fetch {begin}")
        if not rows:
            return None
        return Page(rows, {"done": rows[-1]}, row_keys=lambda: [[row] for row in rows])

    async def close(self) -> None:
        self.calls.append("close")


async def write(ctx: JobContext, source: Source[int], *, die_in: int | None = None, **options: Any) -> list[int]:
    sizes = []
    async for batch in ctx.walk(source, **{"size": 10, **options}):
        await batch.bulk.insert(Author, [authors(row)[-1] for row in batch])
        if batch.number == die_in:
            raise RuntimeError("died")
        sizes.append(len(batch))
    await ctx._attempt.succeed()
    return sizes


async def written(database: Database) -> list[int]:
    async with database.session() as session:
        return list(await session.scalars(select(Author.id).order_by(Author.id)))


async def test_own_source_is_walked_once_over_a_restart_and_closed_each_time(
    context: MakeContext, database: Database
) -> None:
    first, source = context("run"), Numbers(45)
    with pytest.raises(RuntimeError, match="died"):
        await write(first, source, die_in=3)
    await first._attempt.fail()
    await first._attempt.close()
    assert source.calls == ["open null", "fetch 0", "fetch 10", "fetch 20", "close"]
    again = Numbers(45)
    second = context("run")
    assert await write(second, again) == [10, 10, 5]
    assert again.calls == ['open {"done": 20}', "fetch 20", "fetch 30", "fetch 40", "fetch 45", "close"]
    assert await written(database) == list(range(1, 46))
    assert second.rows_done == 45
    third = Numbers(45)
    await write(context("run"), third)
    assert third.calls == ["close"]  # a step that has ended is not opened


async def test_own_source_under_another_name_is_refused(context: MakeContext) -> None:
    first = context("run")
    with pytest.raises(RuntimeError):
        await write(first, Numbers(45), die_in=2)
    await first._attempt.fail()
    await first._attempt.close()
    other = context("run")
    with pytest.raises(CursorMismatch, match="numbers"):
        await write(other, Numbers(45, name="others"))
    await other._attempt.fail()


async def test_own_source_that_does_not_move_is_an_error(context: MakeContext) -> None:
    class Stuck(Numbers):
        async def fetch(self, transaction: BatchTransaction, cursor: Any, size: int) -> Page[int] | None:
            return Page([1], {"done": 1})

    ctx = context()
    with pytest.raises(Exception, match="the walk would never end"):
        async for _ in ctx.walk(Stuck(1)):
            pass
    await ctx._attempt.fail()


async def test_pages_without_rows_pass_a_boundary_and_move_the_cursor(context: MakeContext) -> None:
    class Sparse(Numbers):
        async def fetch(self, transaction: BatchTransaction, cursor: Any, size: int) -> Page[int] | None:
            page = await super().fetch(transaction, cursor, size)
            if page is None or page.rows[0] > 10:
                return page
            return Page((), page.cursor)

    ctx = context("run")
    found: list[int] = []
    async for batch in ctx.walk(Sparse(25), size=10):
        found += batch
    assert found == list(range(11, 26))
    await ctx._attempt.succeed()


async def test_row_of_own_source_goes_to_quarantine_by_its_key(database: Database, settings: Settings) -> None:
    assert await JobRunner(database, settings)(refuse_some) == 43
    assert await written(database) == [number for number in range(1, 46) if number not in (7, 33)]
    rows = await Ledger(database).quarantine.list_rows()
    assert sorted(row.key for row in rows) == [[7], [33]]


@job
async def refuse_some(ctx: JobContext) -> int:
    """Write each number but two."""
    async for batch in ctx.walk(Numbers(45), size=20, on_error="quarantine", quarantine_limit=5):
        await batch.bulk.insert(Author, [authors(row)[-1] for row in batch])
        if {7, 33} & set(batch):
            raise ValueError("unlucky")
    return ctx.rows_done


async def test_error_in_open_or_fetch_fails_the_run_even_if_the_job_swallows_it(context: MakeContext) -> None:
    class Broken(Numbers):
        def __init__(self, where: str) -> None:
            super().__init__(45)
            self.where = where

        async def open(self, step: OpenStep) -> Bounds:
            if self.where == "open":
                raise UnsupportedStatement("cannot open")
            return await super().open(step)

        async def fetch(self, transaction: BatchTransaction, cursor: Any, size: int) -> Page[int] | None:
            if self.where == "fetch" and cursor is not None:
                raise OSError("cannot fetch")
            return await super().fetch(transaction, cursor, size)

    for where in ("open", "fetch"):
        ctx, source = context(), Broken(where)
        try:
            async for _ in ctx.walk(source, size=10):
                pass
        except (UnsupportedStatement, OSError):
            pass
        assert source.calls[-1] == "close"
        with pytest.raises(Exception, match="an exception ended the loop numbers"):
            await ctx._attempt.succeed()


async def test_source_can_read_in_the_batchs_transaction(context: MakeContext, database: Database) -> None:
    class Queue:
        """Books in a table that is used as a queue: claimed and deleted in the batch's transaction."""

        kind = "queue"
        fingerprint = "book"

        async def open(self, step: OpenStep) -> Bounds:
            return Bounds()

        async def fetch(self, transaction: BatchTransaction, cursor: Any, size: int) -> Page[str] | None:
            raw = await transaction.driver()
            rows = await raw.fetch(
                "DELETE FROM book WHERE id IN (SELECT id FROM book ORDER BY id LIMIT $1) RETURNING title", size
            )
            return Page([row["title"] for row in rows]) if rows else None

        async def close(self) -> None:
            pass

    ctx = context("run")
    await ctx.bulk.insert(Author, authors(1))
    await ctx.bulk.insert(Book, [{"id": n, "author_id": 1, "title": f"t{n}"} for n in range(1, 26)])
    with pytest.raises(RuntimeError):
        async for batch in ctx.walk(Queue(), size=10):
            if batch.number == 2:
                raise RuntimeError
    await ctx._attempt.fail()
    await ctx._attempt.close()
    again = context("run")
    titles: list[str] = []
    async for batch in again.walk(Queue(), size=10):
        titles += batch
    assert titles == [f"t{n}" for n in range(11, 26)]  # those of the failed batch were rolled back
    await again._attempt.succeed()


_KILLED = """
import asyncio, os, signal, sys
from tests.batch.test_source import Numbers, authors, Author
from worker import load_settings, job, JobContext
from worker.db.engine import Database
from worker.testing.runner import JobRunner

@job
async def walk(ctx: JobContext) -> int:
    async for batch in ctx.walk(Numbers(45), size=10):
        await batch.bulk.insert(Author, [authors(row)[-1] for row in batch])
        if batch.number == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
    return ctx.rows_done

async def main() -> None:
    settings = load_settings()
    database = Database(settings)
    print(await JobRunner(database, settings).attempt(walk, "run"))
    await database.close()

asyncio.run(main())
"""


async def test_own_source_is_walked_once_over_kills(database: Database, settings: Settings) -> None:
    root = Path(__file__).parents[2]

    async def attempt(die_in: int) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _KILLED, str(die_in), cwd=root, stdout=asyncio.subprocess.PIPE,
            env={"DATABASE_URL": settings.database.url, "REDIS_URL": settings.redis.url, "PATH": ""},
        )  # fmt: skip
        out, _ = await process.communicate()
        return process.returncode, out.decode().strip()

    assert (await attempt(2))[0] == -9
    assert await written(database) == list(range(1, 11))
    assert (await attempt(4))[0] == -9
    assert await written(database) == list(range(1, 31))
    assert await attempt(0) == (0, "45")
    assert await written(database) == list(range(1, 46))
    async with database.session() as session:
        assert await session.scalar(select(func.count()).select_from(text("worker.run"))) == 1


def test_protocol_is_public() -> None:
    source: Source[int] = Numbers(3)
    page: Page[int] = Page([1])
    rows: Sequence[int] = page.rows
    assert (source.kind, list(rows)) == ("numbers", [1])


class Unsteady(Numbers):
    """A service that loses connections: `failures` times before each page."""

    def __init__(self, last: int, failures: int, error: Exception) -> None:
        super().__init__(last)
        self.failures = self.left = failures
        self.error = error

    async def fetch(self, transaction: BatchTransaction, cursor: Any, size: int) -> Page[int] | None:
        if self.left:
            self.left -= 1
            self.calls.append("fail")
            raise self.error
        self.left = self.failures
        return await super().fetch(transaction, cursor, size)


def caused_by(cause: Exception) -> Exception:
    error = RuntimeError("the client wraps it")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error", [ConnectionResetError("reset"), TimeoutError(), caused_by(ConnectionRefusedError("refused"))], ids=repr
)
async def test_fetch_that_fails_for_a_moment_is_repeated(
    context: MakeContext, database: Database, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(batch_retry, "_FETCH_PAUSES", (0.0,) * 5)
    source = Unsteady(25, 3, error)
    assert await write(context("run"), source) == [10, 10, 5]
    assert await written(database) == list(range(1, 26))
    assert source.calls.count("fail") == 12


@pytest.mark.parametrize(
    "error", [ConnectionResetError("reset"), FileNotFoundError("gone"), ValueError("no JSON")], ids=repr
)
async def test_fetch_that_fails_for_good_fails_the_attempt_with_its_error(
    context: MakeContext, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(batch_retry, "_FETCH_PAUSES", (0.0,) * 5)
    source = Unsteady(25, 1000, error)
    with pytest.raises(type(error)):
        await write(context("run"), source)
    assert source.calls.count("fail") == (6 if isinstance(error, ConnectionError) else 1)
    assert source.calls[-1] == "close"
