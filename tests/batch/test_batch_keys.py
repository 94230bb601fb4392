"""Keys for effects outside the database: the same key for the same rows, over crashes, halving and quarantine."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text

from tests.batch.test_source import Numbers
from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.contexts import MakeContext
from worker import Batch, Bounds, JobContext, OpenStep, Page, Settings, job
from worker.batch.batch_keys import BatchKeys
from worker.batch.transaction import BatchTransaction
from worker.db.engine import Database
from worker.errors import UsageError
from worker.testing.runner import JobRunner

ROWS = 60


class Pages:
    """A source whose rows have no keys, only a cursor."""

    kind = "pages"
    fingerprint = "pages"

    async def open(self, step: OpenStep) -> Bounds:
        return Bounds(total=ROWS)

    async def fetch(self, transaction: BatchTransaction, cursor: Any, size: int) -> Page[int] | None:
        begin = cursor or 0
        rows = list(range(begin + 1, min(begin + size, ROWS) + 1))
        return Page(rows, rows[-1]) if rows else None

    async def close(self) -> None:
        """Do nothing."""


def keyless(ctx: JobContext, **options: Any) -> Any:
    statement = select(Author.id, func.upper(Author.name)).order_by(func.abs(Author.id))
    return ctx.stream(statement, on_restart="start_over", **options)


LOOPS: dict[str, Callable[..., Any]] = {
    "chunks": lambda ctx, **options: ctx.chunks(select(Author), **options),
    "columns": lambda ctx, **options: ctx.chunks(select(Author.id), **options),
    "unlocked": lambda ctx, **options: ctx.chunks(select(Author.id), lock=False, **options),
    "skip_locked": lambda ctx, **options: ctx.chunks(select(Author.id), skip_locked=True, **options),
    "by two": lambda ctx, **options: ctx.chunks(select(Author.id), by=[Author.region, Author.code], **options),
    "stream": lambda ctx, **options: ctx.stream(select(Author.id).order_by(Author.id.desc()), **options),
    "stream without a key": keyless,
    "walk": lambda ctx, **options: ctx.walk(Numbers(ROWS), **options),
    "walk without keys": lambda ctx, **options: ctx.walk(Pages(), **options),
}
EACH_LOOP = [
    pytest.param(loop, marks=[] if loop in ("chunks", "stream", "walk without keys") else pytest.mark.long)
    for loop in LOOPS
]
#: Loops whose rows have a key of their own.
KEYED = [name for name in LOOPS if "without" not in name]


class Receiver:
    """A service that is called once a batch and once a row, and remembers the keys."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, tuple[Any, ...]]] = []
        self.rows: list[tuple[str, Any]] = []

    def call(self, batch: Batch[Any], *, is_keyed: bool) -> None:
        rows = tuple(map(identify, batch))
        self.batches.append((batch.idempotency_key, rows))
        if is_keyed:
            self.rows += zip(batch.row_keys, rows, strict=True)

    def check(self) -> None:
        """Each key stands for the same rows in every call, and the same rows have the same key."""
        for calls in (self.batches, self.rows):
            pairs = set(calls)
            assert len(pairs) == len({key for key, _ in pairs}) == len({rows for _, rows in pairs})


def identify(row: Any) -> Any:
    return row.id if isinstance(row, Author) else tuple(row) if hasattr(row, "_fields") else row


@pytest.fixture
async def run(database: Database, settings: Settings) -> JobRunner:
    """Sixty rows, and a runner."""
    await fill_authors(database, ROWS)
    return JobRunner(database, settings)


@pytest.mark.parametrize("loop", EACH_LOOP)
@pytest.mark.parametrize("fault", ["crash", "deadlock"])
async def test_key_stands_for_the_same_rows_over_faults(run: JobRunner, loop: str, fault: str) -> None:
    receiver, chance = Receiver(), random.Random(f"{loop} {fault}")
    faults = 6

    @job
    async def one(ctx: JobContext) -> int:
        nonlocal faults
        size = chance.choice([7, 10, 20])
        async for batch in LOOPS[loop](ctx, size=size):
            receiver.call(batch, is_keyed=loop in KEYED)
            if isinstance(batch[0], Author):
                batch[0].name = "changed"  # the key is made from the rows as they were read
            if faults == 6 or (faults and chance.random() < 0.4):
                faults -= 1
                if fault == "crash":
                    raise RuntimeError("the worker dies after its call")
                sql = "DO $$ BEGIN RAISE 'deadlock' USING ERRCODE = '40P01'; END $$"
                await batch.session.execute(text(sql))
        return ctx.rows_done

    while True:
        try:
            assert await run.attempt(one, "run") == ROWS
        except RuntimeError:
            continue
        break
    assert faults < 6
    receiver.check()


@pytest.mark.parametrize("loop", EACH_LOOP)
async def test_same_batch_has_the_same_key_after_its_worker_has_died(
    context: MakeContext, database: Database, loop: str
) -> None:
    await fill_authors(database, ROWS)
    calls: list[tuple[str, list[Any]]] = []
    first = context("run")
    walk = LOOPS[loop](first, size=20)
    async for batch in walk:
        calls.append((batch.idempotency_key, list(map(identify, batch))))
        if len(calls) == 2:
            await walk.fail()
            break
    await first._attempt.close()
    second = context("run")
    calls += [(batch.idempotency_key, list(map(identify, batch))) async for batch in LOOPS[loop](second, size=20)]
    await second._attempt.succeed()
    begun = 0 if loop == "stream without a key" else 1
    assert calls[2] == calls[begun]
    assert len({key for key, _ in calls}) == 3


def test_key_is_of_run_step_and_rows() -> None:
    page = Page([1, 2], [2], row_keys=lambda: [[1], [2]])
    key = BatchKeys("run", "step", page, [0]).of_batch
    assert key.startswith("run:step:")
    assert len(key) == len("run:step:") + 32
    assert BatchKeys("run", "step", page, [1]).of_batch == key  # the place in the walk does not matter
    others = [
        BatchKeys("other", "step", page, [0]),
        BatchKeys("run", "other", page, [0]),
        BatchKeys("run", "step", Page([1], [1], row_keys=lambda: [[1]]), [0]),
        BatchKeys("run", "step", Page([1, 2, 3], [3], row_keys=lambda: [[1], [2], [3]]), [0]),
        BatchKeys("run", "step", Page([1, 2], [2], row_keys=lambda: [["1"], ["2"]]), [0]),
    ]
    assert len({key, *(other.of_batch for other in others)}) == 6


async def test_row_keys_are_those_of_gather(context: MakeContext, database: Database) -> None:
    await fill_authors(database, 5)
    ctx = context("run")

    async def echo(row: int, row_key: str) -> str:
        return row_key

    async for batch in ctx.chunks(select(Author.id), lock=False):
        assert batch.row_keys == [f"run:1-chunks:[{key}]" for key in range(1, 6)]
        assert [each.result for each in await batch.gather(echo)] == batch.row_keys
    await ctx._attempt.succeed()


async def test_row_keys_of_rows_without_a_key_are_an_error(context: MakeContext, database: Database) -> None:
    await fill_authors(database, 5)
    ctx = context("run")
    async with keyless(ctx) as partitions:
        async for partition in partitions:
            with pytest.raises(UsageError, match="order the stream by a unique one"):
                _ = partition.row_keys
    await ctx._attempt.succeed()


async def test_lines_have_a_key_for_their_place_in_the_file(context: MakeContext, tmp_path: Path) -> None:
    file = tmp_path / "lines"
    file.write_text("same\n" * 6)
    keys = []
    for _ in range(2):
        ctx = context("run")
        async for batch in ctx.lines(file, size=2):
            keys.append(batch.idempotency_key)
            if len(keys) == 2:
                break
        await ctx._attempt.fail()
        await ctx._attempt.close()
    assert keys[2] == keys[1]
    assert len(set(keys)) == 3
