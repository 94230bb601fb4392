"""The command lines of the page do what its orders do: each is run, and what it leaves is compared."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

import httpx
import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from tests.support.command_line import CommandLine
from tests.web.jobs import greet
from worker import Client, Settings
from worker.db.engine import Database
from worker.queue.dead_letters import encode_letter
from worker.web.page.command_lines import CommandLines
from worker.web.table import ORDERS

_OPERATIONS = {operation.name: operation for operation in ORDERS}
#: Fields with the giver or the time of an order, and names that hold a time.
_LEFT_OUT = (b"worker:orders", b"worker:events", b"worker:ordered", b"worker:job-names")
_TIMES = re.compile(rb"[0-9a-f]{32}|\d{4}-?\d\d-?\d\dT[\d:.]+Z?|\b1[5-9]\d{11}(\.\d+)?\b")
#: A name that looks like an option, has a quote and spaces.
ODD = "-it's a run"


class Case(NamedTuple):
    """An order.

    Attributes:
        operation: the operation of the API.
        body: its body.
        path: its path parameters.
        redis: whether the lines of `redis-cli` leave the same; others wait for a worker.
    """

    operation: str
    body: dict[str, Any]
    path: dict[str, str] = {}
    redis: bool = False


CASES = (
    Case("enqueue", {"job": "greet", "arguments": {"name": "5", "times": 2, "day": "2026-01-31"}, "id": ODD}),
    Case("enqueue", {"job": "nightly", "delay_seconds": 90.0, "priority": 4, "queue": "arq:other"}),
    Case("run_cron_job", {"arguments": {"depth": "deep"}}, {"job": "nightly"}),
    Case("pause", {"targets": ["r", ODD, "*"]}, redis=True),
    Case("pause", {"targets": ["greet"], "where": {"name": "A & B"}}, redis=True),
    Case("resume", {"targets": ["greet"]}, redis=True),
    Case("pace", {"targets": ["r", ODD], "rows_per_second": 12.5}, redis=True),
    Case("pace", {"targets": ["walk"], "rows_per_second": 1_234_567.5}, redis=True),
    Case("pace", {"targets": ["walk"], "rows_per_second": None}, redis=True),
    Case("limit", {"name": "greet", "concurrency": 1_000_000, "rate_per_second": 123_456.75}, redis=True),
    Case("limit", {"name": "greet", "concurrency": 2, "rate_per_second": None}, redis=True),
    Case("limit", {"name": "greet", "rate_per_second": 0.5}, redis=True),
    Case("cancel", {"runs": ["r"]}),
    Case("drain", {"workers": ["north", ODD]}, redis=True),
    Case("retry", {"runs": [ODD, "letter"]}),
    Case("retry", {"runs": ["ended"], "from_start": True}),
    Case("retry", {"runs": ["ended"], "accept_statement": True}),
    Case("retry_dead_letters", {"runs": [ODD]}),
    Case("retry_dead_letters", {"job": "greet"}),
    Case("retry_dead_letters", {"all": True}),
    Case("delete_dead_letters", {"runs": ["letter", ODD]}),
    Case("delete_dead_letters", {"job": "walk"}),
    Case("delete_dead_letters", {"all": True}),
    Case("retry_quarantined", {"runs": ["ended"]}),
    Case("retry_quarantined", {"rows": [1, 3]}),
    Case("discard_quarantined", {"rows": [1, 3]}),
    Case("discard_quarantined", {"run": "ended"}),
    Case("retry_outbox", {"rows": [2]}),
    Case("delete_outbox", {"all": True}),
)


async def begin(redis: Redis, client: Client, database: Database) -> None:
    """Set what the orders change: a waiting run, dead letters, a dead walk with quarantined rows, and an outbox."""
    await redis.flushall()
    await client.enqueue(greet.options(id="r", delay=3600), "Ada")
    await client.pause("greet")
    await client.pace("walk", rows_per_second=5)
    await client.limit_rate("greet", runs_per_second=9)
    await redis.hset("worker:workers", mapping={"north": "{}", ODD: "{}"})  # type: ignore[misc]
    payload = b'{"f": "greet", "k": {"name": "Eve"}}'
    about: dict[str, Any] = {"queue": "arq:queue", "attempts": 1, "error": "x", "trace": "", "in_ledger": False}
    for number, (run_id, job) in enumerate({"letter": "greet", ODD: "walk"}.items()):
        letter: Any = encode_letter(payload, job=job, **about)
        await redis.hset("worker:dead", mapping={run_id: letter})  # type: ignore[misc]
        await redis.zadd("worker:dead:at", {run_id: number})
    async with database.session() as session:
        for statement in (
            "TRUNCATE worker.run, worker.quarantine, worker.outbox RESTART IDENTITY CASCADE",
            "INSERT INTO worker.run (id, job, queue, state, payload, arguments, fence, attempt, batches_before, "
            "finished_at) VALUES "
            """('ended', 'walk', 'arq:queue', 'dead', '{"f": "walk", "k": {}}', '{}', 1, 1, 0, now())""",
            "INSERT INTO worker.step (run_id, name, position, kind, statement, key, cursor, fence) VALUES "
            """('ended', 'loop', 1, 'chunks', 'SELECT', '[["id", "bigint", "asc"]]', '[7]', 1)""",
            "INSERT INTO worker.quarantine (run_id, step, key, error, row) SELECT 'ended', 'loop', "
            "jsonb_build_array(n), 'x', '{}' FROM generate_series(1, 3) AS n",
            "INSERT INTO worker.outbox (run_id, job, payload, problem) SELECT 'o' || n, 'greet', '{}', "
            "CASE WHEN n > 1 THEN 'odd' END FROM generate_series(1, 3) AS n",
        ):
            await session.execute(text(statement.replace(":", r"\:")))
        await session.commit()


async def read_state(redis: Redis, database: Database) -> Any:
    """Return all that orders change, without times and random ids."""
    found: dict[bytes, Any] = {}
    for key in await redis.keys("*"):
        if key in _LEFT_OUT:
            continue
        kind = await redis.type(key)
        value: Any = {
            b"string": lambda key: redis.get(key),
            b"hash": lambda key: redis.hgetall(key),
            b"set": lambda key: redis.smembers(key),
            b"zset": lambda key: redis.zrange(key, 0, -1, withscores=True),
            b"list": lambda key: redis.lrange(key, 0, -1),
            b"stream": lambda key: redis.xlen(key),
        }[kind](key)
        value = await value
        found[_TIMES.sub(b"#", key)] = _TIMES.sub(
            b"#", repr(sorted(value) if isinstance(value, set) else value).encode()
        )
    async with database.session() as session:
        rows = [
            tuple(row)
            for table in (
                "run_id, problem FROM worker.outbox",
                "id FROM worker.quarantine",
                "id, state FROM worker.run",
            )
            for row in await session.execute(text(f"SELECT {table} ORDER BY 1"))
        ]
        rows += [(await session.scalar(text("SELECT count(*) FROM worker.step")),)]
    return found, rows


@pytest.mark.parametrize("operation", sorted({case.operation for case in CASES}))
async def test_the_lines_of_an_order_do_what_the_order_does(
    operation: str,
    http: httpx.AsyncClient,
    settings: Settings,
    redis: Redis,
    client: Client,
    database: Database,
    cli: CommandLine,
) -> None:
    for case in [one for one in CASES if one.operation == operation]:
        chosen = _OPERATIONS[operation]
        lines = CommandLines(settings).make(operation, case.path, make_body(chosen.body, case.body))
        await begin(redis, client, database)
        before = await read_state(redis, database)
        answer = await http.post(chosen.path.format(**case.path), json=case.body)
        assert answer.status_code in (200, 201), answer.text
        wanted = await read_state(redis, database)
        assert wanted != before, case

        await begin(redis, client, database)
        worker_lines = [shlex.split(line) for line in lines if line.startswith("worker ")]
        assert worker_lines, lines
        notes = [line for line in lines if line.startswith("# ")]
        assert all(line.startswith("# no redis-cli form: ") for line in notes)
        assert bool(notes) != any(line.startswith("redis-cli ") for line in lines), "a line or a reason"
        for words in worker_lines:
            ran = await cli(*words[1:], LONGHAUL_WORKER__PACKAGES='["tests.web.jobs"]')
            assert ran.returncode == 0, (words, ran.stderr)
        assert await read_state(redis, database) == wanted, worker_lines

        redis_lines = [shlex.split(line) for line in lines if line.startswith("redis-cli ")]
        assert not case.redis or redis_lines, case
        await begin(redis, client, database)
        for words in redis_lines:
            await redis.execute_command(*words[1:])
        if case.redis:
            assert await read_state(redis, database) == wanted, redis_lines
        elif redis_lines:
            assert await read_state(redis, database) != before, redis_lines

        statements = [shlex.split(line)[-1] for line in lines if line.startswith("psql ")]
        for statement in statements:
            async with database.session() as session:
                await session.execute(text(statement))
                await session.commit()
        assert not statements or await read_state(redis, database) == wanted, statements


def make_body(model: Any, values: Mapping[str, Any]) -> Any:
    """Return the body of an operation, as a form of the page makes it."""
    return model.model_validate(values, strict=False)


def test_every_order_of_the_page_is_compared() -> None:
    compared = {case.operation for case in CASES}
    assert compared == set(_OPERATIONS) - {"plan_job", "try_job"}  # they leave nothing


async def test_lines_have_the_prefix_of_the_namespace_and_enqueue_runs_the_job(
    settings: Settings, redis: Redis
) -> None:
    named = settings.model_copy(update={"redis": settings.redis.model_copy(update={"namespace": "shop"})})
    pause = CommandLines(named).make("pause", {}, make_body(_OPERATIONS["pause"].body, {"targets": ["x y"]}))
    assert pause == ["worker pause 'x y'", "redis-cli SADD '{shop}:worker:paused' 'x y'"]

    body = make_body(_OPERATIONS["enqueue"].body, {"job": "greet", "arguments": {"name": "O'Hara"}})
    await redis.flushall()
    for line in CommandLines(settings).make("enqueue", {}, body)[1:]:
        await redis.execute_command(*shlex.split(line)[1:])
    [run_id] = await redis.zrange("arq:queue", 0, -1)
    assert await redis.get(b"arq:job:" + run_id) == b'{"f": "greet", "k": {"name": "O\'Hara"}}'


async def test_a_run_that_is_enqueued_by_redis_cli_has_its_due_time_and_its_priority(
    settings: Settings, redis: Redis
) -> None:
    values = {"job": "nightly", "at": "2100-01-31T12:00:00Z", "priority": 4, "queue": "arq:other", "id": "later"}
    body = make_body(_OPERATIONS["enqueue"].body, values)
    for line in CommandLines(settings).make("enqueue", {}, body)[1:]:
        await redis.execute_command(*shlex.split(line)[1:])
    due = datetime(2100, 1, 31, 12, tzinfo=UTC).timestamp() * 1000
    assert json.loads(await redis.get("arq:job:later")) == {"f": "nightly", "k": {}, "p": 4}
    assert await redis.zscore("arq:other", "later") == await redis.zscore("worker:priority:4:arq:other", "later") == due
    assert await redis.zrange("worker:priorities:arq:other", 0, -1, withscores=True) == [(b"4", 4.0)]
