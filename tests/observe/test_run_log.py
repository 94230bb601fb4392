"""The last lines of each run's log: in Redis, in the ledger, in the API and on the command line."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote, quote_plus

import httpx
import pytest
from redis.asyncio import Redis
from sqlalchemy import select, text

from tests.attempt.process_jobs import tell
from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.command_line import CommandLine
from tests.support.waiting import until
from tests.support.workers import with_worker, working
from tests.web.conftest import connect
from worker import Client, JobContext, JobFailed, Settings, SyncClient, job
from worker.db.engine import Database
from worker.observe.masking import Mask
from worker.queue import keys
from worker.queue.run_log import LogLine
from worker.web import web_app

pytestmark = pytest.mark.usefixtures("info")
own = logging.getLogger("shop.mail")


@pytest.fixture
def info() -> Iterator[None]:
    """The level INFO, which a worker has by default."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    yield
    root.setLevel(level)


def with_log(settings: Settings, **values: Any) -> Settings:
    return settings.model_copy(update={"log": settings.log.model_copy(update=values)})


@job(max_attempts=2)
async def walk(ctx: JobContext) -> None:
    """Log in a loop, and fail behind it at the first attempt."""
    async for batch in ctx.chunks(select(Author.id), size=10, name="authors"):
        ctx.log.info("batch %d", batch.number, extra={"tenant": "north", "rate": float("nan")})
        own.debug("below INFO")
    if ctx.attempt == 1:
        raise RuntimeError("broken")
    own.warning("done postgresql://app:s3cret-word@db/x %s", ctx.settings.redis.url)


@job
def in_thread(ctx: JobContext) -> None:
    """Log in this thread, and in one that the job starts."""
    own.info("in a thread")
    other = threading.Thread(target=ctx.log.info, args=("in %s", "another"))
    other.start()
    other.join()


@job
async def chatty(ctx: JobContext, lines: int, size: int) -> None:
    """Log much."""
    for number in range(lines):
        ctx.log.info("%d %s", number, "x" * size)


@job(max_attempts=1)
async def hostile(ctx: JobContext) -> None:
    """Log what breaks terminals and parsers, and fail."""
    ctx.log.info("one\ntwo \x1b[31m \ud800 \x00", extra={"run": "another", "message_": "\ud800"})
    raise ValueError("dead \x1b[31m\n\x00")


@job
async def together(ctx: JobContext) -> None:
    """Walk with two hands, each of which logs."""
    async for batch in ctx.chunks(select(Author.id), size=5, parallel=2, name="authors"):
        ctx.log.info("hand %s", batch.number)
        await asyncio.sleep(0.01)


@pytest.fixture
async def named(fast: Settings) -> Settings:
    """Settings of a worker with a name, and with a password to hide."""
    return with_worker(fast, name="north")


async def kept(client: Client, run_id: str, count: int = 1) -> list[LogLine]:
    """Wait for lines of a run."""

    async def find() -> list[LogLine] | None:
        found = await client.run_log(run_id)
        return found if len(found) >= count else None

    return await until(find)


async def kept_to_the_end(client: Client, run_id: str) -> list[LogLine]:
    """Wait for the lines of a run, with the one about the end of its attempt."""

    async def find() -> list[LogLine] | None:
        found = await client.run_log(run_id)
        return found if found and found[-1].message.startswith("attempt ended") else None

    return await until(find)


def texts(lines: list[LogLine], logger: str = "") -> list[str]:
    return [line.message for line in lines if line.logger.startswith(logger)]


@pytest.fixture
async def ledger_client(named: Settings, database: Database, redis: Redis) -> AsyncIterator[Client]:
    """A client with the ledger."""
    async with Client(named, database=database) as opened:
        yield opened


async def test_the_log_of_a_walk_has_all_attempts_and_outlives_redis(
    named: Settings, ledger_client: Client, database: Database, redis: Redis, cli: CommandLine
) -> None:
    await fill_authors(database, 30)
    async with working(named, walk):
        run = await ledger_client.enqueue(walk.options(id="w/1"))
        await run.result(timeout=60)
    lines = await ledger_client.run_log("w/1")
    assert texts(lines, "job.walk") == ["batch 1", "batch 2", "batch 3"]
    in_loop = [line for line in lines if line.message == "batch 2"]
    assert [(line.attempt, line.step, line.worker, line.run) for line in in_loop] == [
        (1, "authors", "north", "w/1"),
    ]
    assert in_loop[0].extra == {"tenant": "north", "rate": "nan"}
    assert {line.attempt for line in lines if line.logger == "shop.mail"} == {2}
    failed, *_ = [line for line in lines if line.message.startswith("attempt failed")]
    assert failed.level == "WARNING" and 'raise RuntimeError("broken")' in (failed.exception or "")
    assert "attempt ended" in lines[-1].message and "below INFO" not in texts(lines)
    [done] = texts(lines, "shop.mail")
    assert "app:***@db/x" in done and "s3cret-word" not in done

    assert 0 < await redis.ttl(keys.LOG + "w/1") <= named.worker.result_ttl_seconds
    await redis.flushall()
    assert await ledger_client.run_log("w/1") == lines  # PostgreSQL has the same lines

    shown = await cli("runs", "show", "w/1", "--log")
    assert shown.returncode == 0, shown.stderr
    assert "job.walk [attempt 1, authors] batch 1 tenant=north rate=nan" in shown.stdout
    assert 'raise RuntimeError("broken")' in shown.stdout
    printed = json.loads((await cli("runs", "show", "w/1", "--log", "--json")).stdout)
    assert [one["message"] for one in printed] == texts(lines)
    missing = await cli("runs", "show", "unknown", "--log")
    assert (missing.returncode, missing.stdout) == (1, "") and "no line of its log" in missing.stderr

    async with connect(web_app(named, jobs=[walk])) as http:
        items = (await http.get("/runs/w%2F1/log")).json()["items"]
        assert [one["message"] for one in items] == texts(lines)
        assert items[1]["extra"] == lines[1].extra and items[1]["time"].startswith("20")
        assert (await http.get("/runs/unknown/log")).json() == {"items": [], "next_cursor": None}
    async with database.transaction() as session:
        await session.execute(text("DELETE FROM worker.run"))
        assert await session.scalar(text("SELECT count(*) FROM worker.run_log")) == 0


async def test_threads_and_processes_log_into_their_run(
    named: Settings, client: Client, redis: Redis, database: Database
) -> None:
    async with working(named, in_thread, tell):
        await (await client.enqueue(in_thread.options(id="t1"))).result(timeout=60)
        await (await client.enqueue(tell.options(id="p1"))).result(timeout=60)
        thread = await kept(client, "t1", 4)
        process = await kept(client, "p1", 3)
    assert [line.message for line in thread][1:3] == ["in a thread", "in another"]
    assert {(line.run, line.attempt) for line in thread} == {("t1", 1)}
    mine = [line for line in process if not line.logger.startswith("longhaul")]
    assert mine and all((line.run, line.attempt, line.worker) == ("p1", 1, "north") for line in mine)


async def test_the_log_is_capped_in_lines_and_bytes(
    named: Settings, client: Client, redis: Redis, database: Database
) -> None:
    async with working(with_log(named, run_lines=20, run_bytes=8192), chatty):
        await (await client.enqueue(chatty.options(id="many"), 500, 1)).result(timeout=60)
        await (await client.enqueue(chatty.options(id="long"), 60, 400)).result(timeout=60)
        await (await client.enqueue(chatty.options(id="huge"), 1, 1_000_000)).result(timeout=60)
        many, long, huge = [await kept_to_the_end(client, name) for name in ("many", "long", "huge")]
    assert len(many) == 20 and many[-2].message == "499 x"
    assert 9 < len(long) < 18 and long[-2].message.startswith("59 ")
    assert await redis.xlen(keys.LOG + "long") == len(long)
    [line] = [line for line in huge if line.logger == "job.chatty"]
    assert 4_000 < len(line.message) < 4_100 and line.message.endswith("left out)")


async def test_short_runs_without_lines_of_their_own_leave_no_key(
    named: Settings, client: Client, redis: Redis, database: Database
) -> None:
    @job
    async def silent(ctx: JobContext) -> None:
        """Log nothing."""

    async with working(named, silent, chatty):
        runs = await client.enqueue_many(silent, [{}] * 5) + await client.enqueue_many(
            chatty, [{"lines": 1, "size": 1}] * 200
        )
        for run in runs:
            await run.result(timeout=60)
    logs = [name async for name in redis.scan_iter(keys.LOG + "*")]
    assert 25 <= len(logs) < 150
    assert not {keys.LOG + run.id for run in runs[:5]} & {name.decode() for name in logs}


async def test_hostile_lines_are_kept_and_shown_safely(
    named: Settings, client: Client, ledger_client: Client, redis: Redis, cli: CommandLine
) -> None:
    async with working(named, hostile):
        with pytest.raises(JobFailed):
            await (await client.enqueue(hostile.options(id="h1"))).result(timeout=60)
        lines = await kept(client, "h1", 3)
    [line] = [line for line in lines if line.logger == "job.hostile"]
    assert line.message == "one\ntwo \x1b[31m \\ud800 \x00"
    assert (line.run, line.extra) == ("h1", {"run": "another", "message_": "\\ud800"})
    assert await redis.ttl(keys.LOG + "h1") > 29 * 86_400  # as long as the dead letter
    shown = await cli("runs", "show", "h1", "--log")
    assert "\x1b" not in shown.stdout and "two \\x1b[31m" in shown.stdout

    async with connect(web_app(named, jobs=[hostile])) as http:
        assert (await http.get("/runs/h1/log")).json()["items"][1]["extra"]["run"] == "another"
    await ledger_client.delete_dead_letters("h1")
    assert not await redis.exists(keys.LOG + "h1")
    entry = {b"time": b"\xff", b"attempt": b"x" * 99, b"extra": b"[" * 999}
    await redis.xadd(keys.LOG + "h2", entry)  # by another client
    await redis.set(keys.LOG + "h3", "a text")
    [odd] = await client.run_log("h2")
    assert (odd.attempt, odd.extra, odd.message) == (None, {}, "")
    async with connect(web_app(named, jobs=[hostile])) as http:
        assert (await http.get("/runs/h2/log")).status_code == 200
        wrong: httpx.Response = await http.get("/runs/h3/log")
        assert (wrong.status_code, wrong.headers["content-type"]) == (409, "application/problem+json")


async def test_hands_of_a_walk_log_into_the_run_that_they_help(
    named: Settings, ledger_client: Client, database: Database, redis: Redis
) -> None:
    await fill_authors(database, 400)
    async with working(named, together):
        await (await ledger_client.enqueue(together.options(id="p1"))).result(timeout=60)
    lines = await ledger_client.run_log("p1")
    hands = {line.run for line in lines if line.logger == "job.together"}
    assert "p1" in hands and len(hands) == 2
    assert await redis.keys(keys.LOG + "p1:*") == []
    await redis.flushall()
    assert {line.run for line in await ledger_client.run_log("p1")} >= hands


def test_a_blocking_client_reads_the_log(settings: Settings, redis: Redis) -> None:
    with SyncClient(settings) as blocking:
        assert blocking.run_log("unknown") == []


def test_each_form_of_a_password_is_masked(settings: Settings) -> None:
    secret = "db:s3cr#t/pl@nted?"
    url = f"postgresql+asyncpg://app:{quote(secret, safe='')}@db/x"
    mask = Mask(settings.model_copy(update={"database": settings.database.model_copy(update={"url": url})}))
    for form in (secret, quote(secret, safe=""), quote_plus(secret), repr(secret), url, f"{url} and {url}"):
        masked = mask(f"before {form} after")
        assert "s3cr" not in masked and masked.startswith("before ") and masked.endswith(" after"), masked
    assert mask("redis://:other-word@h:1/0 http://h/a:b@c") == "redis://:***@h:1/0 http://h/a:b@c"
