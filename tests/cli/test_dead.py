"""Dead runs on the command line: walks in the ledger, and jobs outside of it."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import select, text

from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.command_line import CommandLine, error_line
from tests.support.waiting import until
from tests.support.workers import working
from worker import Client, JobContext, JobFailed, NonRetryableError, Settings, job
from worker.db.engine import Database
from worker.ledger import Ledger
from worker.queue import keys
from worker.queue.commands import retry_run
from worker.queue.dead_letters import prune_dead

cured = {"yes": False}


@job
async def brittle(ctx: JobContext, number: int = 1) -> int:
    """Fail permanently until the cause is removed."""
    if not cured["yes"]:
        raise NonRetryableError(f"brittle {number}")
    return number


@job
async def brittle_walk(ctx: JobContext) -> int:
    """Fail permanently in the third batch until the cause is removed."""
    async for batch in ctx.chunks(select(Author), size=10):
        for author in batch:
            author.seen += 1
        if batch.number == 3 and not cured["yes"]:
            raise NonRetryableError("brittle walk")
    return ctx.rows_done


@pytest.fixture(autouse=True)
async def some_dead(database: Database, client: Client, fast: Settings, redis: Redis) -> None:
    """Two jobs and a walk that have failed permanently, and an unreadable payload."""
    cured["yes"] = False
    await fill_authors(database, 50)
    await redis.set("arq:job:broken", b"\xff no JSON")
    await redis.zadd("arq:queue", {"broken": 0})
    async with working(fast, brittle, brittle_walk):
        for run in (
            await client.enqueue(brittle.options(id="b1"), number=1),
            await client.enqueue(brittle.options(id="b2"), number=2),
            await client.enqueue(brittle_walk.options(id="w1")),
            client.run("broken"),
        ):
            with pytest.raises(JobFailed):
                await run.result(timeout=120)


async def listed(cli: CommandLine, *options: str) -> dict[str, dict[str, Any]]:
    ran = await cli("dead", "--json", *options)
    assert ran.returncode == 0, ran.stderr
    return {one["id"]: one for one in json.loads(ran.stdout)}


async def test_all_of_them_are_listed_with_arguments_error_traceback_and_tries(cli: CommandLine, redis: Redis) -> None:
    letters = await listed(cli)
    assert {name: (one["job"], one["in_ledger"]) for name, one in letters.items()} == {
        "b1": ("brittle", False),
        "b2": ("brittle", False),
        "w1": ("brittle_walk", True),
        "broken": ("", False),
    }
    assert (letters["b2"]["arguments"], letters["b2"]["attempts"]) == ({"number": 2}, 1)
    for name, error in (("b2", "NonRetryableError: brittle 2"), ("w1", "NonRetryableError: brittle walk")):
        assert letters[name]["error"].startswith(error)
        assert 'raise NonRetryableError(f"brittle' in letters[name]["traceback"] or name == "w1"
        assert error in letters[name]["traceback"]
    shown = (await cli("dead", "show", "b2")).stdout
    assert 'arguments: {"number": 2}' in shown
    assert "Traceback (most recent call last)" in shown
    assert "w1" in (await cli("dead")).stdout
    # Redis alone shows them all, too.
    assert sorted(await redis.hkeys(keys.DEAD)) == [b"b1", b"b2", b"broken", b"w1"]
    times = await redis.zrange(keys.DEAD_AT, 0, -1, withscores=True)
    assert sorted(name for name, _ in times) == [b"b1", b"b2", b"broken", b"w1"]
    assert all(0 <= time.time() - at / 1000 < 60 for _, at in times)


async def test_they_are_chosen_by_job_and_age(cli: CommandLine, redis: Redis, database: Database) -> None:
    assert set(await listed(cli, "--job", "brittle")) == {"b1", "b2"}
    assert set(await listed(cli, "--older-than", "1h")) == set()
    await age(redis, "b1", days=8)
    async with database.transaction() as session:
        await session.execute(text("UPDATE worker.run SET finished_at = finished_at - interval '9 days'"))
    assert list(await listed(cli, "--older-than", "7d")) == ["b1", "w1"]
    assert list(await listed(cli, "--older-than", "7d", "--job", "brittle")) == ["b1"]
    assert len(await listed(cli, "--limit", "1")) == 1


async def test_they_go_back_one_by_one_by_job_or_all(
    cli: CommandLine,
    redis: Redis,
    client: Client,
    fast: Settings,
    database: Database,
) -> None:
    cured["yes"] = True
    async with working(fast, brittle, brittle_walk):
        assert "b1: enqueued again" in (await cli("retry", "b1")).stdout
        assert await client.run("b1").result(timeout=120) == 1
        assert "enqueued again: b2" in (await cli("retry", "--job", "brittle")).stdout
        assert await client.run("b2").result(timeout=120) == 2
        assert (await cli("retry", "--all")).returncode == 0
        assert await client.run("w1").result(timeout=120) == 50
        await until(lambda: redis.hexists(keys.DEAD, "broken"))  # it is no better than before
    assert list(await listed(cli)) == ["broken"]
    async with database.session() as session:  # from its checkpoint: no row twice
        assert await session.scalar(text("SELECT min(seen) = 1 AND max(seen) = 1 FROM author"))


async def test_they_are_forgotten(cli: CommandLine, redis: Redis, database: Database) -> None:
    refused = await cli("dead", "delete", "--all", stdin="n\n")
    assert refused.returncode == 1
    assert "deleted: b1" in (await cli("dead", "delete", "b1")).stdout
    assert set(await listed(cli)) == {"b2", "w1", "broken"}
    assert (await cli("dead", "delete", "--all", "--yes")).returncode == 0
    assert await listed(cli) == {}
    assert await redis.exists(keys.DEAD, keys.DEAD_AT) == 0
    async with database.session() as session:
        assert await session.scalar(text("SELECT count(*) FROM worker.run")) == 0
    assert "no dead run" in (await cli("dead")).stdout


async def test_what_cannot_be_is_one_line(cli: CommandLine) -> None:
    for arguments, code, message in (
        (["retry", "nobody"], 1, "neither an ended run nor dead: nobody"),
        (["dead", "delete", "nobody"], 1, "not dead: nobody"),
        (["dead", "show", "nobody"], 1, "nobody is not dead"),
        (["retry"], 2, "give run ids"),
        (["retry", "b1", "--all"], 2, "give run ids"),
        (["retry", "--all", "--from-start"], 2, "--from-start takes run ids"),
        (["retry", "b1", "--quarantined", "--from-start"], 2, "--quarantined takes run ids"),
        (["dead", "delete", "b1", "--all"], 2, "give run ids"),
        (["dead", "--older-than", "week"], 2, "write e.g."),
        (["dead", "--older-than", "999999999d"], 2, "before the calendar begins"),
    ):
        ran = await cli(*arguments)
        assert (ran.returncode, message in error_line(ran)) == (code, True)


async def test_a_letter_goes_back_once_and_never_over_a_run_that_waits(
    redis: Redis, client: Client, database: Database
) -> None:
    ledger = Ledger(database)
    raw = await redis.hget(keys.DEAD, "b1")
    assert await retry_run(redis, ledger, "b1", from_start=False)
    assert await redis.zscore(keys.DEAD_AT, "b1") is None
    assert not await retry_run(redis, ledger, "b1", from_start=False)
    await redis.hset(keys.DEAD, "b1", raw)  # as if two had read it at the same time
    assert not await retry_run(redis, ledger, "b1", from_start=False)
    assert await redis.zcard("arq:queue") == 1


async def test_what_died_as_it_was_too_late_is_run_when_an_operator_wants_it(
    redis: Redis, client: Client, fast: Settings, database: Database
) -> None:
    cured["yes"] = True
    late = await client.enqueue(brittle.options(id="late", delay=0.05, expires=0.01), number=7)
    async with working(fast, brittle):
        with pytest.raises(JobFailed, match="expired"):
            await late.result(timeout=120)
        assert await retry_run(redis, Ledger(database), "late", from_start=False)
        assert await client.run("late").result(timeout=120) == 7


async def test_a_walk_whose_deadline_has_passed_goes_on_when_an_operator_wants_it(
    redis: Redis, client: Client, fast: Settings, database: Database
) -> None:
    late = await client.enqueue(brittle_walk.options(id="late"))
    async with working(fast, brittle_walk):
        with pytest.raises(JobFailed):
            await late.result(timeout=120)
    cured["yes"] = True
    payload = json.dumps({"f": "brittle_walk", "k": {}, "ledger": True, "deadline": 1})
    async with database.transaction() as session:
        its_payload = text("UPDATE worker.run SET payload = :payload WHERE id = 'late'")
        await session.execute(its_payload, {"payload": payload})
    ledger = Ledger(database)
    assert await retry_run(redis, ledger, "late", from_start=False)
    known = await ledger.find("late")
    assert known is not None and "deadline" not in known.payload  # by which a rescue would put it back
    async with working(fast, brittle_walk):
        assert await client.run("late").result(timeout=120) == 50


async def test_old_letters_are_pruned(redis: Redis) -> None:
    await age(redis, "b1", days=31)
    assert await prune_dead(redis, 30 * 86_400) == 1
    assert sorted(await redis.hkeys(keys.DEAD)) == [b"b2", b"broken", b"w1"]
    assert sorted(await redis.zrange(keys.DEAD_AT, 0, -1)) == [b"b2", b"broken", b"w1"]


async def test_pruning_notes_the_times_of_letters_that_have_none(redis: Redis) -> None:
    await redis.delete(keys.PRUNED, keys.DEAD_AT)
    await age(redis, "b2", days=2)
    await redis.zadd(keys.DEAD_AT, {"no letter": 1, "w1": (time.time() + 9) * 1000})
    assert await prune_dead(redis, 30 * 86_400) == 0
    oldest, *others = await redis.zrange(keys.DEAD_AT, 0, -1, withscores=True)
    assert (oldest[0], round((time.time() - oldest[1] / 1000) / 86_400)) == (b"b2", 2)
    assert sorted(name for name, _ in others) == [b"b1", b"broken", b"w1"]
    assert others[-1][0] == b"w1"  # a time that was noted stays


@pytest.mark.usefixtures("database")
async def test_a_worker_prunes_old_letters_by_itself(redis: Redis, fast: Settings) -> None:
    await redis.delete(keys.PRUNED)
    await age(redis, "b1", days=31)
    async with working(fast, brittle):
        await until(lambda: _gone(redis, "b1"))
    assert await redis.hexists(keys.DEAD, "b2")


async def _gone(redis: Redis, run_id: str) -> bool:
    return not await redis.hexists(keys.DEAD, run_id)


async def age(redis: Redis, run_id: str, *, days: int) -> None:
    """Make a letter older."""
    letter = json.loads(await redis.hget(keys.DEAD, run_id))
    letter["at"] = (datetime.now(UTC) - timedelta(days=days)).isoformat()
    await redis.hset(keys.DEAD, run_id, json.dumps(letter))
