"""`worker plan`: what each loop of a job would do, without changing anything."""

from __future__ import annotations

import asyncio
import json
import sys

import pytest
from sqlalchemy import delete, func, insert, select, text, update

from tests.models import Author, Book
from tests.support.authors import fill_authors
from tests.support.command_line import CommandLine, error_line
from worker import Client, InvalidArguments, Job, JobContext, Settings, SyncClient, job
from worker.errors import LonghaulError, UsageError
from worker.plan import JobPlan, make_plan, try_job
from worker.testing.runner import JobRunner
from worker.types import Database

COUNTS = """
SELECT (SELECT count(*) FROM author) || ' ' || (SELECT coalesce(sum(seen), 0) FROM author) || ' '
       || (SELECT count(*) FROM worker.run)
"""


@job
async def count_each(ctx: JobContext, name: str = "%") -> int:
    """Walk, then sweep."""
    async for batch in ctx.chunks(select(Author).where(Author.name.like(name)), size=10, name="count"):
        for author in batch:
            author.seen += 1
    await ctx.sweep(update(Author).values(seen=0), size=20, name="reset")
    return ctx.rows_done


@job
async def collect(ctx: JobContext) -> int:
    """Collect ids in one loop for the next."""
    ids = []
    async for batch in ctx.chunks(select(Author.id), size=10):
        ids += batch
    async for _ in ctx.chunks(select(Author).where(Author.id.in_(ids))):
        pass
    return 0


@job
async def depend(ctx: JobContext) -> int:
    """Sweep again if anything was swept."""
    if await ctx.sweep(update(Author).values(seen=1)) > 0:
        await ctx.sweep(update(Author).values(seen=2))
    return 0


@job
async def purge(ctx: JobContext) -> int:
    """Delete authors, whose books have no index."""
    return await ctx.sweep(delete(Author).where(Author.id > 3))


@job
async def unserved(ctx: JobContext, allow: bool = False) -> None:
    """Walk by a key that no index has the order of."""
    async for _ in ctx.chunks(select(Author), by=[Author.region, Author.id.desc()], allow_sort=allow):
        pass


@job
async def write_first(ctx: JobContext) -> None:
    """Write before the loop."""
    async with ctx.transaction() as session:
        await session.execute(insert(Author).values(id=1, name="x", region=1, code="x"))
    async for _ in ctx.chunks(select(Author)):
        pass


@job
async def enqueue_first(ctx: JobContext) -> None:
    """Enqueue before the loop."""
    async with Client(ctx.settings) as client:
        await client.enqueue(purge)
    async for _ in ctx.chunks(select(Author)):
        pass


@job
async def copy_books(ctx: JobContext) -> None:
    """Insert from a select, then read a stream."""
    rows = select(Author.id, Author.name, Author.id)
    await ctx.sweep(insert(Book).from_select(["id", "title", "author_id"], rows))
    async for _ in ctx.stream(select(Author.id).order_by(Author.id)):
        pass


@job
async def no_loop(ctx: JobContext) -> None:
    """Have an effect, and no loop."""
    raise AssertionError("a plan has run a job that has no loop")


async def make(settings: Settings, job: Job[..., object], **arguments: object) -> JobPlan:
    return await make_plan(job, settings, **arguments)


async def count(database: Database) -> str:
    async with database.session() as session:
        return str(await session.scalar(text(COUNTS)))


async def test_clients_plan_as_the_function_does(settings: Settings, database: Database) -> None:
    await fill_authors(database, 95)
    async with database.transaction() as session:
        await session.execute(text("ANALYZE author"))  # else autovacuum does that between two plans
    expected = await make(settings, copy_books)
    async with Client(settings) as client:
        assert await client.plan(copy_books) == expected
        with pytest.raises(UsageError, match="has no durable loop"):
            await client.plan(no_loop)
    with SyncClient(settings) as sync:
        assert await asyncio.to_thread(sync.plan, copy_books) == expected
        with pytest.raises(UsageError, match="use `Client` there"):
            sync.plan(copy_books)


async def test_plan_describes_each_loop_and_changes_nothing(settings: Settings, database: Database) -> None:
    await fill_authors(database, 95)
    async with database.transaction() as session:
        await session.execute(text("ANALYZE author"))
    before = await count(database)
    plan = await make(settings, count_each)
    assert [(loop.step, loop.kind, loop.table) for loop in plan.loops] == [
        ("count", "chunks", "author"),
        ("reset", "sweep", "author"),
    ]
    first, second = plan.loops
    assert (first.rows, first.batch_rows, first.batches, first.index) == (95, 10, 10, "author_pkey")
    assert (second.rows, second.batches) == (95, 5)
    assert "FOR NO KEY UPDATE" in first.sql and any("author" in line for line in first.explain)
    assert second.sql.startswith("UPDATE author") and second.explain[0].startswith("Update on author")
    assert any("FOR NO KEY UPDATE" in lock for lock in first.locks)
    assert any("ROW EXCLUSIVE" in lock for lock in second.locks)
    assert first.seconds is None and plan.ended == "" and not first.refusal
    assert await count(database) == before


async def test_plan_knows_the_pace_of_the_last_run(settings: Settings, database: Database, run_job: JobRunner) -> None:
    await fill_authors(database, 50)
    await run_job(count_each)
    first = (await make(settings, count_each)).loops[0]
    assert first.pace is not None and first.pace.rows_per_second > 0
    assert first.seconds == pytest.approx((first.rows or 0) / first.pace.rows_per_second)


@pytest.mark.parametrize(
    ("job", "loops", "reason"),
    [(collect, 1, "sets ids"), (depend, 1, "depends on the number of rows")],
    ids=lambda value: value.name if isinstance(value, Job) else None,
)
async def test_plan_ends_at_the_first_loop_that_decides_what_follows(
    settings: Settings, database: Database, job: Job[..., object], loops: int, reason: str
) -> None:
    await fill_authors(database, 5)
    plan = await make(settings, job)
    assert len(plan.loops) == loops
    assert reason in plan.ended


async def test_plan_of_a_purge_names_unindexed_children_cascades_and_triggers(
    settings: Settings, database: Database
) -> None:
    await fill_authors(database, 5)
    async with database.transaction() as session:
        await session.execute(text("CREATE TABLE note (book int REFERENCES book ON DELETE CASCADE, author int)"))
        await session.execute(text("ALTER TABLE note ADD FOREIGN KEY (author) REFERENCES author ON DELETE CASCADE"))
        await session.execute(text("CREATE TABLE mark (note int)"))
        await session.execute(text("CREATE INDEX ON note (author)"))
        await session.execute(
            text("CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$")
        )
        for event in ("DELETE", "INSERT"):
            await session.execute(
                text(f"CREATE TRIGGER on_{event} AFTER {event} ON author FOR EACH ROW EXECUTE FUNCTION nothing()")
            )
    loop = (await make(settings, purge)).loops[0]
    # Other modules of tests declare children of `author`, too.
    children = [child for child in loop.children if child.child in ("book", "note")]
    found = {child.child: (child.on_delete, child.is_indexed, child.create_index) for child in children}
    assert found == {
        "book": ("check", False, "CREATE INDEX CONCURRENTLY ON book (author_id)"),
        "note": ("CASCADE", True, None),
    }
    assert [trigger.split(":")[0] for trigger in loop.triggers] == ["on_delete"]
    assert any("each deleted row of author reads all of book" in warning for warning in loop.warnings)
    assert any("ON DELETE CASCADE also changes note" in warning for warning in loop.warnings)
    assert any("FOR UPDATE" in lock for lock in loop.locks)
    assert loop.batches and any("no statistics" in warning for warning in loop.warnings)  # it was not analyzed


async def test_plan_of_a_walk_without_an_index_is_refused_and_names_it(settings: Settings, database: Database) -> None:
    await fill_authors(database, 5)
    cure = "CREATE INDEX CONCURRENTLY ON author (region, id DESC)"
    loop = (await make(settings, unserved)).loops[0]
    assert loop.create_index == cure and cure in loop.refusal and loop.index is None
    allowed = (await make(settings, unserved, allow=True)).loops[0]
    assert allowed.create_index == cure and not allowed.refusal


@pytest.mark.parametrize(
    ("job", "reason"),
    [(write_first, "writes outside of its loops"), (enqueue_first, "sends nothing to the queue")],
    ids=lambda value: value.name if isinstance(value, Job) else None,
)
async def test_plan_refuses_what_the_code_before_a_loop_would_change(
    settings: Settings, database: Database, client: Client, job: Job[..., object], reason: str
) -> None:
    plan = await make(settings, job)
    assert reason in plan.ended and plan.loops == []
    assert await client.redis.dbsize() == 0
    async with database.session() as session:
        assert await session.scalar(select(func.count()).select_from(Author)) == 0


async def test_plan_of_insert_and_stream(settings: Settings, database: Database) -> None:
    await fill_authors(database, 5)
    insert_, stream = (await make(settings, copy_books)).loops
    assert insert_.sql.startswith("INSERT INTO book") and insert_.locks[0].startswith("ROW EXCLUSIVE on book")
    assert stream.kind == "stream" and stream.key == ["author.id"]


async def test_plan_runs_no_job_without_loops_and_validates_arguments(settings: Settings, database: Database) -> None:
    with pytest.raises(UsageError, match="no durable loop"):
        await make(settings, no_loop)
    with pytest.raises(InvalidArguments):
        await make(settings, count_each, nonsense=1)


async def test_plan_shows_no_text_of_an_argument(settings: Settings, database: Database) -> None:
    await fill_authors(database, 5)
    plan = await make(settings, count_each, name="hunter2%")
    assert plan.loops[0].explain and "hunter2" not in repr(plan)


async def test_plan_on_the_command_line(cli: CommandLine, database: Database) -> None:
    wrong = await cli("plan", "no_such_job")
    assert wrong.returncode == 2 and "there is no job 'no_such_job'" in error_line(wrong)
    ran = await cli("plan", "process_all_users")
    assert ran.returncode == 1 and "there is no table users" in ran.stdout
    async with database.transaction() as session:
        await session.execute(
            text(
                "CREATE TABLE users (id int PRIMARY KEY, name text, email text, is_active bool, "
                "last_seen_at timestamptz, score int)"
            )
        )
    ran = await cli("plan", "process_all_users", "--arg", "points=2")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "users_pkey" in ran.stdout and "1-chunks: chunks over users" in ran.stdout
    made = json.loads((await cli("plan", "process_all_users", "--json")).stdout)
    assert made["loops"][0]["batch_rows"] == 1_000
    wrong = await cli("plan", "process_all_users", "--arg", "points=many")
    assert wrong.returncode == 2 and "points" in error_line(wrong)


@job
async def walk_by_no_hands(ctx: JobContext) -> None:
    """Walk with a number of hands that cannot be."""
    async for _ in ctx.chunks(select(Author), parallel=0):
        pass


async def test_plan_and_trial_refuse_a_number_of_hands_that_a_run_refuses(
    settings: Settings, database: Database
) -> None:
    assert "parallel=0: give the number of hands" in (await make(settings, walk_by_no_hands)).ended
    with pytest.raises(LonghaulError, match="parallel=0: give the number of hands"):
        await try_job(walk_by_no_hands, settings)


@job
async def exit_first(ctx: JobContext) -> None:
    """End the process."""
    if ctx.attempt:
        sys.exit(3)
    async for _ in ctx.chunks(select(Author.id)):
        pass


async def test_job_that_ends_the_process_is_named(settings: Settings, database: Database) -> None:
    with pytest.raises(UsageError, match="exit_first raises before its first loop: SystemExit: 3"):
        await make_plan(exit_first, settings)
    with pytest.raises(LonghaulError, match="job exit_first: SystemExit: 3"):
        await try_job(exit_first, settings)
