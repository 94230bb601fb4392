"""`@job(verify=...)`: runs that leave rows undone, and `@job(once=True)`: data migrations."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from sqlalchemy import Select, exists, func, literal, select, text, update
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.orm import aliased

from tests.models import Author, Book
from tests.support.authors import fill_authors
from tests.support.command_line import CommandLine, error_line
from tests.support.workers import working
from worker import Client, InvalidArguments, Job, JobContext, JobFailed, Settings, job
from worker.errors import RegistrationError
from worker.ledger import Ledger
from worker.plan import DataMigrationMissing, require_data_migrations
from worker.plan.verify import Undone, find_undone
from worker.types import Database

runs = 0


@job(verify=select(Author).where(Author.seen == 0))
async def count_some(ctx: JobContext, below: int) -> int:
    """Count some authors."""
    async for batch in ctx.chunks(select(Author).where(Author.id < below), size=10):
        for author in batch:
            author.seen += 1
    return ctx.rows_done


@job(verify=lambda below: select(Author.name).where(Author.id < below, Author.seen == 0), name="count_by_argument")
async def count_by_argument(ctx: JobContext, below: int) -> int:
    """Do nothing, and find that out."""
    return 0


@job(once=True, verify=select(Author.id).where(Author.seen == 0))
async def backfill_seen(ctx: JobContext) -> int:
    """Migrate data once."""
    global runs
    runs += 1
    return await ctx.sweep(update(Author).where(Author.id < 1_000).values(seen=1))


@job(once=True)
async def migrate_without_loop(ctx: JobContext) -> str:
    """Migrate data without a loop."""
    global runs
    runs += 1
    return "done"


async def fetch_state(database: Database, run_id: str) -> tuple[str, str | None]:
    async with database.session() as session:
        found = await session.execute(text("SELECT state, error FROM worker.run WHERE id = :id"), {"id": run_id})
        return tuple(found.one())  # type: ignore[return-value]


async def test_run_that_leaves_rows_ends_as_incomplete_with_their_number_and_five_keys(
    fast: Settings, client: Client, database: Database
) -> None:
    await fill_authors(database, 40)
    async with working(fast, count_some):
        partial = await client.enqueue(count_some.options(id="partial"), below=31)
        with pytest.raises(JobFailed, match=r"incomplete: 10 rows are left undone: 31, 32, 33, 34, 35, \.\.\."):
            await partial.result(timeout=120)
        assert await partial.status() == "incomplete"
        whole = await client.enqueue(count_some, below=100)
        assert await whole.result(timeout=120) == 40
    assert await fetch_state(database, "partial") == (
        "incomplete",
        "incomplete: 10 rows are left undone: 31, 32, 33, 34, 35, ...",
    )
    assert (await Ledger(database).list_runs(state="incomplete"))[0].id == "partial"


async def test_verify_may_be_made_from_the_arguments(fast: Settings, client: Client, database: Database) -> None:
    await fill_authors(database, 5)
    async with working(fast, count_by_argument):
        with pytest.raises(JobFailed, match="2 rows are left undone: 1, 2"):
            await (await client.enqueue(count_by_argument, below=3)).result(timeout=120)
        assert await (await client.enqueue(count_by_argument, below=1)).result(timeout=120) == 0


NAMED = aliased(Author)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        (select(Author).where(Author.id > 12), (2, [13, 14])),
        (select(NAMED.name).where(NAMED.id > 12), (2, [13, 14])),
        (
            select(Author.region).group_by(Author.region).having(func.count() > 1).order_by(Author.region),
            (7, [*range(5)]),
        ),
        (select(func.max(Author.id).label("last")).group_by(Author.region).order_by("last"), (7, [*range(8, 13)])),
        (select(func.count(Author.id)).having(func.count(Author.id) > 13), (1, [14])),
        (select(Author.region).distinct().where(Author.region < 2).order_by(Author.region), (2, [0, 1])),
        (select(Author.region).where(Author.region < 1).ext(distinct_on(Author.region)), (1, [0])),
        (select(Author).distinct().where(Author.id > 12), (2, [13, 14])),
        (select(Author, func.count()).join(Book, isouter=True).group_by(Author.id), (14, [1, 2, 3, 4, 5])),
        (select(Author).order_by(Author.id.desc()).limit(2), (2, [14, 13])),
        (select(Author).order_by(Author.id).offset(12), (2, [13, 14])),
        (select(select(Author.id).cte()).limit(1), (1, [1])),
        (select(literal(7)).where(exists(select(Author))), (1, [7])),
    ],
    ids=str,
)
async def test_keys_are_those_of_the_rows_that_are_counted(
    database: Database, statement: Select[Any], expected: tuple[int, list[Any]]
) -> None:
    await fill_authors(database, 14)

    @job(verify=statement)
    async def check(ctx: JobContext) -> None: ...

    assert await find_undone(database, check, {}) == Undone(*expected)


async def test_verify_on_the_command_line_looks_again_and_records_what_it_finds(
    cli: CommandLine, fast: Settings, client: Client, database: Database
) -> None:
    await fill_authors(database, 5)
    package = {"LONGHAUL_WORKER__PACKAGES": '["tests.plan.test_verify"]'}
    async with working(fast, count_some):
        run = await client.enqueue(count_some.options(id="r"), below=4)
        with pytest.raises(JobFailed):
            await run.result(timeout=120)
    ran = await cli("verify", "r", "--json", **package)
    assert (ran.returncode, json.loads(ran.stdout)) == (1, {"run": "r", "count": 2, "keys": [4, 5]}), ran.stderr
    async with database.transaction() as session:
        await session.execute(update(Author).values(seen=1))
    ran = await cli("verify", "r", **package)
    assert (ran.returncode, ran.stdout) == (0, "r: complete\n")
    assert await fetch_state(database, "r") == ("succeeded", None)
    missing = await cli("verify", "no-such-run", **package)
    assert missing.returncode == 1 and "no run 'no-such-run'" in error_line(missing)


@pytest.mark.parametrize("migration", [backfill_seen, migrate_without_loop], ids=lambda one: one.name)
async def test_data_migration_runs_once_for_ever_and_is_a_gate(
    cli: CommandLine, fast: Settings, client: Client, database: Database, migration: Job[[], object]
) -> None:
    global runs
    runs = 0
    await fill_authors(database, 5)
    name = migration.name
    before = await cli("require", name)
    assert before.returncode == 1 and f"data migration {name} has not begun: worker enqueue {name}" in before.stderr

    async with database.engine.connect() as connection:
        with pytest.raises(DataMigrationMissing, match=name):
            await connection.run_sync(require_data_migrations, name)
    async with working(fast, migration):
        run = await client.enqueue(migration)
        assert run.id == name
        result = await run.result(timeout=120)
        assert await (await client.enqueue(migration)).result(timeout=120) == result
    assert runs == 1
    # Forget the run, in the ledger and in Redis.
    await Ledger(database).delete_finished(keep_seconds=-1, after=None, limit=10)
    assert await Ledger(database).find(name) is None
    await client.redis.flushall()
    async with working(fast, migration):
        again = await client.enqueue(migration)
        assert again.is_new and await again.result(timeout=120) == result
    assert runs == 1
    after = await cli("require", name, "--json")
    assert (after.returncode, json.loads(after.stdout)) == (0, [])
    async with database.engine.connect() as connection:
        await connection.run_sync(require_data_migrations, name)


async def test_data_migration_that_leaves_rows_is_not_done_until_it_is_verified(
    cli: CommandLine, fast: Settings, client: Client, database: Database
) -> None:
    await fill_authors(database, 5)
    async with database.transaction() as session:
        await session.execute(text("INSERT INTO author (id, name, region, code, seen) VALUES (2000, 'x', 1, 'x', 0)"))
    async with working(fast, backfill_seen):
        with pytest.raises(JobFailed, match="2000"):
            await (await client.enqueue(backfill_seen)).result(timeout=120)
    ran = await cli("require", "backfill_seen", "other")
    assert ran.returncode == 1 and "is incomplete" in ran.stderr and "other has not begun" in ran.stderr
    async with database.transaction() as session:
        await session.execute(update(Author).values(seen=1))
    assert (
        await cli("verify", "backfill_seen", LONGHAUL_WORKER__PACKAGES='["tests.plan.test_verify"]')
    ).returncode == 0
    assert (await cli("require", "backfill_seen")).returncode == 0


async def test_data_migration_has_one_id(fast: Settings, client: Client, database: Database) -> None:
    with pytest.raises(InvalidArguments, match="its name"):
        await client.enqueue(backfill_seen.options(id="other"))
    with pytest.raises(InvalidArguments, match="one run"):
        await client.enqueue_many(backfill_seen, [{}])
    with pytest.raises(InvalidArguments, match="data migration"):
        backfill_seen.call()
    async with working(fast, backfill_seen):
        by_name = await client.enqueue_by_name("backfill_seen", {}, id="other")
        with pytest.raises(JobFailed, match="enqueue it with its name as id"):
            await by_name.result(timeout=120)


def test_options_that_contradict_are_refused() -> None:
    with pytest.raises(RegistrationError, match="once=True"):

        @job(once=True, cron="0 3 * * *")
        async def nightly(ctx: JobContext) -> None: ...

    with pytest.raises(RegistrationError, match="verify="):

        @job(verify="SELECT 1")
        async def odd(ctx: JobContext) -> None: ...


@pytest.mark.parametrize(
    ("verify", "problem"),
    [
        (lambda below: select(Author), r"by name \(below, by\): got an unexpected keyword argument 'by'"),
        (lambda below, by, most: select(Author), "missing a required argument: 'most'"),
        (
            lambda below, /, by: select(Author),
            "'below' parameter is positional only|some positional-only arguments .*'below'",
        ),
        (asyncio.sleep, "give a plain function"),
    ],
)
def test_a_function_of_verify_that_cannot_be_called_is_refused_before_any_work(verify: Any, problem: str) -> None:
    with pytest.raises(RegistrationError, match=problem):

        @job(verify=verify)
        async def wrong(ctx: JobContext, below: int, *, by: str = "") -> None: ...

    for fitting in (lambda **arguments: select(Author), lambda below, by, more=1: select(Author)):

        @job(verify=fitting)
        async def right(ctx: JobContext, below: int, *, by: str = "") -> None: ...
