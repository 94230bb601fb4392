"""The JSON log of a worker that runs jobs: every line says to which attempt it belongs."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import select

from tests.attempt.process_jobs import tell
from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.workers import working
from worker import Client, Job, JobContext, JobFailed, Settings, job
from worker.db.engine import Database
from worker.observe.logs import JsonFormatter

pytestmark = pytest.mark.usefixtures("redis", "database")
own = logging.getLogger("shop.mail")


class Lines(logging.Handler):
    """Keeps the lines of the JSON log."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter("north"))
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record), parse_constant=pytest.fail))

    def of(self, logger: str, text: str = "") -> list[dict[str, Any]]:
        return [line for line in self.lines if line["logger"] == logger and text in line["message"]]


@pytest.fixture
def log() -> Iterator[Lines]:
    """The JSON log of this process."""
    root, handler = logging.getLogger(), Lines()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


@job(max_attempts=2)
async def walk(ctx: JobContext) -> None:
    """Log before, in and after a loop, and fail in it at each attempt."""
    own.info("before")
    async for batch in ctx.chunks(select(Author.id), size=10, name="authors"):
        own.info("in %d", batch.number, extra={"tenant": "t1"})
        if batch.number == 2:
            raise RuntimeError("broken")


@job
async def finish(ctx: JobContext) -> None:
    """Walk to the end."""
    async for _ in ctx.chunks(select(Author.id), size=100, name="authors"):
        pass
    own.info("after")


@job(run_in="thread")
def in_thread(ctx: JobContext) -> None:
    """Log in a thread."""
    own.info("in a thread", extra={"run": "another"})


@job(max_attempts=3)
async def plain(ctx: JobContext) -> None:
    """Fail outside of any loop."""
    raise ValueError("never")


async def run_one(settings: Settings, client: Client, one: Job[..., Any], run_id: str, **arguments: Any) -> None:
    async with working(settings, one):
        run = await client.enqueue(one.options(id=run_id), **arguments)
        with contextlib.suppress(JobFailed):
            await run.result(timeout=120)


async def test_lines_of_a_walk_name_run_job_attempt_step_and_worker(
    fast: Settings, client: Client, database: Database, log: Lines
) -> None:
    await fill_authors(database, 30)
    await run_one(fast, client, walk, "w1")
    mine = {"run": "w1", "job": "walk", "worker": "north"}
    found = [(line["message"], line["attempt"], line.get("step")) for line in log.of("shop.mail")]
    first = [line for line in found if line[1] == 1]
    assert first[:3] == [("before", 1, None), ("in 1", 1, "authors"), ("in 2", 1, "authors")]
    assert {1, 2} <= {attempt for _, attempt, _ in found}
    assert all(line | mine == line for line in log.of("shop.mail"))
    assert {line["tenant"] for line in log.of("shop.mail", "in ")} == {"t1"}


async def test_each_failed_attempt_has_its_traceback_and_step(
    fast: Settings, client: Client, database: Database, log: Lines
) -> None:
    await fill_authors(database, 30)
    await run_one(fast, client, walk, "w1")
    failed = log.of("longhaul.jobs", "attempt failed") + log.of("longhaul.jobs", "job dead")
    assert {line["attempt"] for line in failed} == {1, 2}
    for line in failed:
        assert (line["run"], line["job"], line["step"], line["worker"]) == ("w1", "walk", "authors", "north")
        assert 'raise RuntimeError("broken")' in line["exception"]


async def test_each_failed_attempt_outside_of_a_loop_has_its_traceback(
    fast: Settings, client: Client, log: Lines
) -> None:
    await run_one(fast, client, plain, "p1")
    failed = log.of("longhaul.jobs", "attempt failed") + log.of("longhaul.jobs", "job dead")
    assert [(line["run"], line["job"], line["attempt"]) for line in failed] == [("p1", "plain", n) for n in (1, 2, 3)]
    assert all('raise ValueError("never")' in line["exception"] and "step" not in line for line in failed)


async def test_a_line_after_the_loop_has_no_step(
    fast: Settings, client: Client, database: Database, log: Lines
) -> None:
    await fill_authors(database, 30)
    await run_one(fast, client, finish, "f1")
    [line] = log.of("shop.mail")
    assert "step" not in line and (line["run"], line["attempt"]) == ("f1", 1)


async def test_lines_of_a_thread_name_the_attempt_although_extra_names_another_run(
    fast: Settings, client: Client, log: Lines
) -> None:
    await run_one(fast, client, in_thread, "t1")
    [line] = log.of("shop.mail")
    assert (line["run"], line["job"], line["attempt"]) == ("t1", "in_thread", 1)
    assert line["extra"] == {"run": "another"}


async def test_lines_of_a_process_name_the_attempt(fast: Settings, client: Client, log: Lines, redis: Redis) -> None:
    await run_one(fast, client, tell, "c1")
    lines = [line for line in log.lines if line.get("run") == "c1" and not line["logger"].startswith("longhaul")]
    assert lines and all((line["job"], line["attempt"]) == ("tell-context", 1) for line in lines)


async def test_lines_outside_of_jobs_name_the_worker_alone(
    fast: Settings, database: Database, client: Client, log: Lines
) -> None:
    async with working(fast, plain):
        own.info("outside")
    [line] = log.of("shop.mail")
    assert line["worker"] == "north" and not {"run", "job", "attempt", "step"} & line.keys()


class Unprintable:
    """An object without a text."""

    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __str__


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {(1, 2): 3}, Unprintable(), "\ud800\x1b", b"\xff", {1}])
def test_any_extra_leaves_a_line_that_is_valid_json(log: Lines, value: object) -> None:
    own.info("odd", extra={"value": value, "tenant": "t1"})
    [line] = log.of("shop.mail")
    assert line["tenant"] == "t1" and "value" in line


def test_a_cycle_in_extra_leaves_a_line_that_is_valid_json(log: Lines) -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    own.info("odd", extra={"value": cycle, "message_": "m"})
    assert len(log.of("shop.mail")) == 1
