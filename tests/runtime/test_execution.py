"""The identity of an execution in the ledger, and its lines in the log."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime, timedelta

import pytest
from redis.asyncio import Redis
from sqlalchemy import select, update

from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.waiting import until
from tests.support.workers import working
from worker import Client, JobContext, Settings, job
from worker.batch.throttle import Throttle, ThrottleContext, Wait
from worker.db.engine import Database
from worker.queue import keys
from worker.queue.claims import Claim
from worker.queue.store import QueueStore
from worker.runtime.execution import Execution
from worker.runtime.hands import HandRuns
from worker.runtime.observer import Observer
from worker.runtime.operator_state import OperatorState
from worker.runtime.server_retry import WorkerState


@job
async def nightly(ctx: JobContext) -> int:
    """Count a visit of each row."""
    return await ctx.sweep(update(Author).values(seen=Author.seen + 1), size=10)


async def test_an_id_that_redis_cli_enqueues_again_is_a_new_run(
    redis: Redis, database: Database, fast: Settings
) -> None:
    """Such payloads have no time of enqueueing: that of the second night is the same, byte by byte."""
    await fill_authors(database, 30)
    async with working(fast, nightly):
        for night in (1, 2):
            await redis.delete(keys.RESULT + "nightly")  # it has expired
            await redis.set(keys.JOB + "nightly", json.dumps({"f": "nightly", "k": {}}))
            await redis.zadd("arq:queue", {"nightly": 0})
            await until(lambda: redis.exists(keys.RESULT + "nightly"))
            assert json.loads(await redis.get(keys.RESULT + "nightly"))["r"] == 30
            async with database.session() as session:
                assert (await session.scalars(select(Author.seen).distinct())).all() == [night]


class Flapping(Throttle):
    """Waits before each batch, for one of several reasons."""

    waits = 0
    asks_server = False

    def __init__(self, reasons: list[str], *, timed: bool) -> None:
        self._reasons, self._timed, self._checks = reasons, timed, 0

    async def check(self, context: ThrottleContext) -> Wait | None:
        """Wait at every other check."""
        self._checks += 1
        if self._checks % 2:
            return None
        Flapping.waits += 1
        return Wait(self._reasons[Flapping.waits % len(self._reasons)], context.now if self._timed else None)


@pytest.mark.parametrize(
    ("reasons", "timed", "lines"),
    [(["5 rows/s at most"], True, 1), (["lag 1", "lag 2", "lag 3"], False, 1), (["night", "5 rows/s"], True, 2)],
)
async def test_a_wait_is_logged_once_for_a_reason_and_not_for_each_batch(
    redis: Redis,
    database: Database,
    fast: Settings,
    client: Client,
    caplog: pytest.LogCaptureFixture,
    reasons: list[str],
    timed: bool,
    lines: int,
) -> None:
    await fill_authors(database, 60)
    Flapping.waits = 0

    @job(throttle=[Flapping(reasons, timed=timed)])
    async def paced(ctx: JobContext) -> int:
        """Walk in many batches."""
        return await ctx.sweep(update(Author).values(seen=Author.seen + 1), size=5)

    with caplog.at_level(logging.INFO, "longhaul.jobs"):
        async with working(fast, paced):
            assert await (await client.enqueue(paced)).result(timeout=120) == 60
    throttled = [one for one in caplog.records if one.getMessage().startswith("walk throttled")]
    assert Flapping.waits >= 5
    assert len(throttled) == lines


async def test_the_same_wait_is_logged_again_after_a_time_without_it(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = asyncio.get_running_loop()
    clock = {"now": 1000.0}
    monkeypatch.setattr(loop, "time", lambda: clock["now"], raising=False)
    made = Execution(
        Claim("r", "arq:queue", 0, b"{}", 1, False, None),
        rules=settings.worker,
        state=WorkerState("w"),
        operator_state=OperatorState(Redis()),
        observer=Observer(),
        hands=HandRuns(QueueStore(Redis())),
    )
    since = datetime.now(UTC) - timedelta(seconds=30)
    with caplog.at_level(logging.INFO, "longhaul.jobs"):
        for _ in range(481):  # one wait, checked often
            made.throttled(Wait("the replica lags"), since)
            clock["now"] += 0.5
        made.throttled(None, since)
        clock["now"] += 120
        made.throttled(Wait("the replica lags by another second"), since)
    words = [record.getMessage().partition(" job=")[0] for record in caplog.records]
    assert words == ["walk throttled", "walk continues", "walk throttled"]
