"""Commands by argument: `worker pause JOB --where tenant=north`, and by redis-cli."""

from __future__ import annotations

import asyncio
import enum
import logging
import math
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from sqlalchemy import select

from tests.models import Author
from tests.support.authors import count_seen, fill_authors
from tests.support.command_line import CommandLine
from tests.support.waiting import until_status, until_true
from tests.support.workers import working
from worker import Client, JobCancelled, JobContext, Settings, job
from worker.db.engine import Database
from worker.errors import InvalidArguments
from worker.job.argument_texts import stands_for
from worker.queue import keys
from worker.queue.conditions import make_entry, parse_entry
from worker.runtime.operator_state import OperatorState

pytestmark = pytest.mark.usefixtures("database")

served: list[tuple[str, int]] = []
gate: dict[str, asyncio.Event] = {}


@pytest.fixture(autouse=True)
def fresh() -> None:
    """Clear the records of the previous test."""
    served.clear()
    gate["go"] = asyncio.Event()


@job
async def serve(ctx: JobContext, tenant: str, level: int = 1) -> None:
    """Note the arguments."""
    served.append((tenant, level))


@job
async def walk(ctx: JobContext, tenant: str = "north") -> int:
    """Wait in the first batch until the gate opens."""
    async for batch in ctx.chunks(select(Author), size=10):
        for author in batch:
            author.seen += 1
        served.append((tenant, batch.number))
        await gate["go"].wait()
    return ctx.rows_done


@job
async def hang(ctx: JobContext, tenant: str) -> None:
    """Wait outside of a loop."""
    served.append((tenant, 0))
    await asyncio.Event().wait()


class Colour(enum.Enum):
    """An argument."""

    RED = "red"


@job
async def typed(
    ctx: JobContext,
    day: date = date(2026, 1, 2),
    at: datetime = datetime(2026, 1, 2, tzinfo=UTC),
    colour: Colour = Colour.RED,
    rate: float = 5.0,
    full: bool = True,
    limit: int | None = None,
    price: Decimal = Decimal("1.50"),
    age: timedelta = timedelta(days=1),
    form: dict[str, int] = {"a": 1, "b": 2},  # noqa: B006
) -> None:
    """Have an argument of each kind."""


@pytest.mark.parametrize(("name", "value"), typed.codec.signature.parameters.items(), ids=lambda one: str(one)[:12])
def test_a_value_of_python_names_the_runs_with_it(name: str, value: Any) -> None:
    condition = parse_entry(make_entry("typed", {name: value.default}))
    assert condition.matches(typed.codec.with_defaults({}))


@pytest.mark.parametrize(
    ("value", "text", "is_same"),
    [(5.0, "5", True), (5, "5.0", True), (1, "true", False), (True, "1", False), (None, "null", True),
     ([True], "[1]", False), ({"a": [1]}, '{"a": [true]}', False), ([True, 1], "[true, 1.0]", True),
     ([1], "[1, 2]", False),
     ("5", "5.0", False), ({"a": 1, "b": [2]}, '{"b":[2.0],"a":1}', True), (0, "", False), (0, "[" * 100_000, False)],
    ids=lambda one: str(one)[:12],
)  # fmt: skip
def test_a_value_has_one_meaning_in_each_form_of_json(value: Any, text: str, is_same: bool) -> None:
    assert parse_entry(make_entry("typed", {"rate": text})).matches({"rate": value}) is is_same


@pytest.mark.parametrize(
    ("given", "entry"),
    [("full=True", "full=true"), ("rate=5", "rate=5.0"),
     ("at=2026-01-02T01:00:00+01:00", "at=2026-01-02T01:00:00+01:00"),
     ("limit=null", "limit=null"), ('form={"b": 2, "a": 1}', 'form={"a": 1, "b": 2}'), ("colour=red", "colour=red")],
)  # fmt: skip
async def test_the_command_line_reads_a_value_by_its_type(
    cli: CommandLine, redis: Redis, given: str, entry: str
) -> None:
    package = {"LONGHAUL_WORKER__PACKAGES": '["tests.runtime.test_orders_by_argument"]'}
    ran = await cli("pause", "typed", "--where", given, **package)
    assert ran.returncode == 0, ran.stderr
    assert await redis.smembers(keys.PAUSED) == {f"typed?{entry}".encode()}
    ran = await cli("cancel", "typed", "--where", "day=tomorrow", **package)
    assert ran.returncode == 2
    assert "day=tomorrow: input should be a valid date" in ran.stderr


HOUR = timezone(timedelta(hours=1))
KEY = UUID("abcdefab-0000-4000-8000-00000000000e")


@job
async def typed_otherwise(
    ctx: JobContext,
    at: datetime = datetime(2026, 1, 2, tzinfo=UTC),
    naive: datetime = datetime(2026, 1, 2),
    price: Decimal = Decimal("1.0"),
    key: UUID = KEY,
    day: date = date(2026, 1, 2),
    age: timedelta = timedelta(hours=24),
    full: bool = True,
    limit: float | None = None,
    tag: str | None = None,
    text: str = "a=b & c?%20 d",
    moods: list[Decimal] = [Decimal("1.50")],  # noqa: B006
    colour: Colour = Colour.RED,
) -> None:
    """Have arguments whose values have several texts."""


#: Values and texts that are the default of an argument, and some that are not.
SAME: list[tuple[str, Any]] = [
    ("at", datetime(2026, 1, 2, 1, tzinfo=HOUR)), ("at", "2026-01-02T01:00:00+01:00"), ("at", "2026-01-02 00:00Z"),
    ("at", "2026-01-01T19:00:00.000-05:00"), ("naive", "2026-01-02 00:00"), ("price", Decimal(1)), ("price", "1"),
    ("price", "1.00"), ("price", 1), ("key", str(KEY).upper()), ("key", KEY.hex), ("key", KEY), ("day", "2026-01-02"),
    ("age", "PT24H"), ("age", timedelta(days=1)), ("full", "true"), ("full", True), ("limit", None), ("limit", "null"),
    ("tag", None), ("text", "a=b & c?%20 d"), ("moods", "[1.5]"), ("moods", [Decimal("1.500")]), ("colour", "red"),
    ("colour", Colour.RED),
]  # fmt: skip
OTHER: list[tuple[str, Any]] = [
    ("at", datetime(2026, 1, 2, tzinfo=HOUR)), ("at", "2026-01-02T00:00:00"), ("at", "soon"),
    ("naive", "2026-01-02T00:00Z"),
    ("price", "1.1"), ("key", str(UUID(int=1))), ("day", "2026-01-03"), ("age", "PT23H"), ("full", "false"),
    ("limit", 0), ("limit", ""), ("tag", ""), ("tag", "None"), ("text", "a=b & c? d"), ("text", "A=b & c?%20 d"),
    ("moods", "[1.5, 1.5]"), ("colour", "blue"),
]  # fmt: skip


def name_typed(name: str, value: Any) -> bool:
    """Return whether an entry, as commands write it, names the runs with the defaults."""
    codec = typed_otherwise.codec
    condition = replace(
        parse_entry(make_entry("typed_otherwise", {name: value})), stands_for=partial(stands_for, codec)
    )
    return condition.matches(codec.with_defaults(typed_otherwise.encode_arguments([], {})))


@pytest.mark.parametrize(("name", "value"), SAME, ids=lambda one: str(one)[:24])
def test_every_text_of_a_value_names_its_runs(name: str, value: Any) -> None:
    assert name_typed(name, value)


@pytest.mark.parametrize(("name", "value"), OTHER, ids=lambda one: str(one)[:24])
def test_a_text_of_another_value_names_no_run(name: str, value: Any) -> None:
    assert not name_typed(name, value)


async def test_a_pause_in_another_time_zone_holds_the_runs_of_that_instant(
    client: Client, fast: Settings, redis: Redis
) -> None:
    await redis.sadd(keys.PAUSED, "typed_otherwise?at=2026-01-02T01:00:00%2B01:00")
    await client.pause("typed_otherwise", where={"price": Decimal("2.50")})
    async with working(fast, typed_otherwise):
        held = [await client.enqueue(typed_otherwise), await client.enqueue(typed_otherwise, price=Decimal("2.5"))]
        other = await client.enqueue(typed_otherwise, at=datetime(2026, 1, 3, tzinfo=UTC))
        await other.result(timeout=120)
        for run in held[:1]:
            await until_status(run, "paused")
        await redis.delete(keys.PAUSED)
        for run in held:
            await run.result(timeout=120)


async def test_a_pause_by_argument_holds_its_runs_alone_until_it_is_removed(
    client: Client, fast: Settings, redis: Redis
) -> None:
    await redis.sadd(keys.PAUSED, "serve?tenant=north")
    async with working(fast, serve):
        held = await client.enqueue(serve, tenant="north")
        await (await client.enqueue(serve, tenant="south")).result(timeout=120)
        by_name = await client.enqueue_by_name("serve", {"tenant": "north", "level": 2})
        for run in (held, by_name):
            await until_status(run, "paused")
        assert served == [("south", 1)]
        await redis.srem(keys.PAUSED, "serve?tenant=north")
        await held.result(timeout=120)
        await by_name.result(timeout=120)


async def test_several_arguments_and_defaults_count(client: Client, fast: Settings) -> None:
    await client.pause("serve", where={"tenant": "a & b=%", "level": 1})
    async with working(fast, serve):
        held = await client.enqueue(serve, tenant="a & b=%")  # level has its default
        await (await client.enqueue(serve, tenant="a & b=%", level=2)).result(timeout=120)
        await until_status(held, "paused")
        assert await client.resume("serve", where={"tenant": "a & b=%", "level": 1}) == 1
        await held.result(timeout=120)


@pytest.mark.parametrize("key", [keys.PAUSED, keys.CANCELLED])
async def test_resume_takes_an_order_back_whatever_the_order_of_its_arguments(
    client: Client, redis: Redis, key: str
) -> None:
    others = {
        b"serve?level=1",
        b"serve?level=2&tenant=a%26b",
        b"serve?level=1&tenant=a%26b&more=1",
        b"serve",
        b"serve?",
    }
    await redis.sadd(key, "serve?level=1&tenant=a%26b", *others, "walk?level=1&tenant=a%26b", b"\xff?level=1")
    assert await client.resume("serve", where={"tenant": "a&b", "level": 1}) == 1
    left = {*others, b"walk?level=1&tenant=a%26b", b"\xff?level=1"}
    assert await redis.smembers(key) == left  # type: ignore[misc]
    assert await client.resume("serve", where={"tenant": "a&b", "level": 1}) == 0
    if key == keys.PAUSED:
        assert await client.resume("walk?tenant=a%26b&level=1") == 1


async def test_a_running_walk_pauses_at_its_boundary_and_goes_on(
    client: Client, fast: Settings, database: Database, redis: Redis
) -> None:
    await fill_authors(database, 30)
    async with working(fast, walk) as worker:
        run = await client.enqueue(walk)
        await until_true(lambda: served)
        await client.pause("walk", where={"tenant": "north"})
        await until_true(lambda: "walk?tenant=north" in worker.operator_state.paused)
        gate["go"].set()
        await until_status(run, "paused")
        assert await redis.exists(keys.PARKED_RUNS + "walk?tenant=north")
        await client.resume("walk", where={"tenant": "north"})
        assert await run.result(timeout=120) == 30
    assert await count_seen(database) == {1: 30}


async def test_a_cancel_by_argument_ends_waiting_and_running_runs(client: Client, fast: Settings, redis: Redis) -> None:
    async with working(fast, serve, hang):
        running = await client.enqueue(hang, tenant="north")
        await until_true(lambda: served)
        await redis.sadd(keys.CANCELLED, "hang?tenant=north", "serve?tenant=north")
        waiting = await client.enqueue(serve, tenant="north")
        for run in (running, waiting):
            with pytest.raises(JobCancelled):
                await run.result(timeout=120)
        await (await client.enqueue(serve, tenant="south")).result(timeout=120)
    assert served == [("north", 0), ("south", 1)]


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        ("serve?tenent=north", "job serve has no argument tenent; it has tenant, level"),
        ("serve?tenant", "is not of the form job?argument=value"),
        ("serve?", "is not of the form job?argument=value"),
        ("serve?tenant=a&tenant=b", "is not of the form job?argument=value"),
    ],
)
async def test_an_entry_that_matches_no_run_is_a_named_problem_and_pauses_nothing(
    client: Client, fast: Settings, redis: Redis, caplog: pytest.LogCaptureFixture, entry: str, problem: str
) -> None:
    caplog.set_level(logging.WARNING, "longhaul.keys")
    await redis.sadd(keys.PAUSED, entry)
    async with working(fast, serve):
        await (await client.enqueue(serve, tenant="north")).result(timeout=120)
    assert problem in caplog.text and "redis-cli SREM worker:paused" in caplog.text


async def test_a_run_id_with_a_question_mark_is_a_run_id(client: Client, fast: Settings, redis: Redis) -> None:
    await redis.sadd(keys.PAUSED, "what?x=1")
    async with working(fast, serve):
        run = await client.enqueue(serve.options(id="what?x=1"), tenant="north")
        await until_status(run, "paused")


async def test_the_command_line_refuses_unknown_jobs_and_arguments(cli: CommandLine, redis: Redis) -> None:
    done = await cli("pause", "retire_hamlets", "--where", "below=0")
    assert done.stdout == "paused: retire_hamlets?below=0\n"
    assert await redis.smembers(keys.PAUSED) == {b"retire_hamlets?below=0"}
    for arguments, message in (
        (("retire_hamlets", "--where", "beneath=0"), "has no argument beneath; it has below"),
        (("retire_hamlet", "--where", "below=0"), "retire_hamlet"),
        (("retire_hamlets", "--where", "below"), "write name=value"),
        (("*", "--where", "below=0"), "*"),
    ):
        refused = await cli("pause", *arguments)
        assert refused.returncode == 2 and message in refused.stderr, arguments
    assert (await cli("resume", "retire_hamlets", "--where", "below=0")).returncode == 0
    assert await redis.smembers(keys.PAUSED) == set()


async def test_a_cancel_by_argument_is_given_and_ended_in_each_way(
    cli: CommandLine, client: Client, fast: Settings, redis: Redis
) -> None:
    part, entry = ("retire_hamlets", "--where", "below=0"), b"retire_hamlets?below=0"
    assert (await cli("cancel", *part)).stdout == "cancelled, until they are resumed: retire_hamlets?below=0\n"
    assert await redis.smembers(keys.CANCELLED) == {entry}
    assert (await cli("resume", *part)).returncode == 0
    assert await redis.smembers(keys.CANCELLED) == set()
    assert (await cli("resume", *part)).returncode == 1
    await client.cancel("serve", where={"tenant": "north"})
    async with working(fast, serve) as worker:
        with pytest.raises(JobCancelled):
            await (await client.enqueue(serve, tenant="north")).result(timeout=120)
        assert await client.resume("serve", where={"tenant": "north"}) == 1
        await until_true(lambda: not worker.operator_state.has_conditions("serve"))
        await (await client.enqueue(serve, tenant="north")).result(timeout=120)


VALUES = st.one_of(st.text(max_size=20), st.integers(), st.booleans(), st.none())


@given(st.dictionaries(st.from_regex(r"\A[a-z_]{1,8}\Z"), VALUES, min_size=1, max_size=3))
def test_an_entry_matches_the_arguments_that_it_is_made_from(where: dict[str, Any]) -> None:
    entry = make_entry("serve", where)
    assert entry.isprintable()
    condition = parse_entry(entry)
    assert condition.matches(where) and condition.matches({**where, "other": 1})
    for name in where:
        assert not condition.matches({**where, name: "another value"})
        assert not condition.matches({key: value for key, value in where.items() if key != name})


def test_an_entry_of_another_form_is_an_error() -> None:
    for entry in ("serve?", "serve?a", "serve?=1", "serve?a=1&", "serve?a=1&a=2"):
        with pytest.raises(InvalidArguments):
            parse_entry(entry)


async def test_an_order_by_argument_among_many_orders_does_not_wait_for_their_scan(redis: Redis) -> None:
    for key in (keys.PAUSED, keys.CANCELLED):
        await redis.sadd(key, *(f"run{number}" for number in range(2_000)))
    state = OperatorState(redis)
    state.know_arguments({"serve": ["tenant", "level"]}, {})
    await state.refresh(now=True)
    entry, arguments = "serve?tenant=north", lambda: {"tenant": "north", "level": 1}
    for key, order in ((keys.PAUSED, "pause"), (keys.CANCELLED, "cancel")):
        for expected in (order, None):
            await (redis.sadd(key, entry) if expected else redis.srem(key, entry))
            state.changed()
            state._rest_until, state._look_at = math.inf, -math.inf  # the scan is far away
            await state.refresh()
            assert state.find_order("other", "serve", "arq:queue", arguments) == expected
            assert state.find_order("run5", "serve", "arq:queue", arguments) == "cancel"
            assert state.find_order("other", "serve", "arq:queue", lambda: {"tenant": "south"}) is None
