"""`RedisStream` over any order of deaths, runs that end for good, lost acknowledgements and lost deliveries."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import select, text

from tests.models import Author, authors
from tests.support.contexts import MakeContext
from worker.db.engine import Database
from worker.sources import RedisStream

KEY = "longhaul:test:faults"


class Scene:
    """Runs that take the entries of one group, and write each as an author, whose id is unique."""

    def __init__(self, stream: Redis, context: MakeContext, database: Database, chance: random.Random) -> None:
        self.stream = stream
        self.context = context
        self.database = database
        self.chance = chance
        self.last = 0

    async def add(self, count: int) -> None:
        """Add entries."""
        for number in range(self.last + 1, self.last + count + 1):
            await self.stream.xadd(KEY, {"number": number})
        self.last += count

    async def attempt(self, run: str, *, dies_after: int | None = None) -> bool:
        """Begin the next attempt of a run, which dies in a batch. Return whether the run has succeeded."""
        ctx = self.context(run, max_attempts=1_000)
        try:
            async for batch in ctx.walk(RedisStream(KEY, "import"), size=self.chance.randint(1, 7), name="rows"):
                await batch.bulk.insert(Author, [authors(int(entry.fields["number"]))[-1] for entry in batch])
                if self.chance.random() < 0.15:  # a delivery whose answer is lost
                    count = self.chance.randint(1, 4)
                    await self.stream.xreadgroup("import", f"longhaul:{run}:rows", {KEY: ">"}, count=count)
                if batch.number == dies_after:
                    raise RuntimeError("died")
            await ctx._attempt.succeed()
        except RuntimeError:
            await ctx._attempt.fail()
            await ctx._attempt.close()
            return False
        return True

    async def end(self, run: str) -> None:
        """Let a run end for good."""
        async with self.database.transaction() as session:
            ended = "UPDATE worker.run SET state = 'dead', finished_at = pg_catalog.now() WHERE id = :run"
            await session.execute(text(ended), {"run": run})


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[pytest.mark.long] if seed > 1 else []) for seed in range(10)]
)
async def test_each_entry_is_written_once_whatever_is_lost(
    redis: Redis, context: MakeContext, database: Database, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = random.Random(seed)
    scene = Scene(redis, context, database, chance)
    acknowledge = RedisStream._make_acknowledgement

    async def lose() -> None:
        pass

    def make(source: RedisStream, ids: list[str]) -> Callable[[], Any]:
        return acknowledge(source, ids) if chance.random() < 0.7 else lose

    monkeypatch.setattr(RedisStream, "_make_acknowledgement", make)
    await scene.add(60)
    runs, count = ["run 0", "run 1"], 2
    for _ in range(20):
        run = chance.choice(runs)
        if await scene.attempt(run, dies_after=chance.randint(1, 12)) or chance.random() < 0.3:
            await scene.end(run)
            runs[runs.index(run)] = f"run {count}"
            count += 1
        if chance.random() < 0.4:
            await scene.add(10)
    for run in (*runs, "last but one", "last"):
        await scene.attempt(run)
        await scene.end(run)
    async with database.session() as session:
        assert list(await session.scalars(select(Author.id).order_by(Author.id))) == list(range(1, scene.last + 1))
    assert await redis.xinfo_consumers(KEY, "import") == []
