"""`worker enqueue --subset --from`: runs over a part of their walks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import func, insert, select, text, update

from tests.models import Author, Book
from tests.support.authors import fill_authors
from tests.support.command_line import CommandLine, error_line
from tests.support.workers import working
from worker import Client, JobContext, JobFailed, Settings, job
from worker.batch.selection import Selection
from worker.maintenance import purge
from worker.plan import try_job
from worker.plan.plan import plan_part
from worker.sources import TextLines
from worker.types import Database

PACKAGE = {"LONGHAUL_WORKER__PACKAGES": '["tests.plan.test_selection"]'}


@job(verify=select(Author).where(Author.seen == 0))
async def walk_authors(ctx: JobContext) -> int:
    """Walk, in several steps, with another run's worker in between."""
    async for batch in ctx.chunks(select(Author), size=10):
        for author in batch:
            author.seen += 1
    return ctx.rows_done


@job
async def sweep_authors(ctx: JobContext) -> int:
    """Change rows inside of the server."""
    return await ctx.sweep(update(Author).values(seen=Author.seen + 1), size=10)


purge_authors = purge(Author, where=Author.seen == 0, size=2)


@job
async def count_books(ctx: JobContext) -> list[Any]:
    """Read groups."""
    totals = select(Book.author_id, func.count()).group_by(Book.author_id).order_by(Book.author_id)
    return [list(row) async for batch in ctx.stream(totals) for row in batch]


@job
async def sum_all(ctx: JobContext, form: str) -> list[Any]:
    """Read a result that is computed from several rows, or from one."""
    counted = select(func.count(Book.id)).where(Book.author_id == Author.id).scalar_subquery()
    forms: dict[str, Any] = {
        "an aggregate": select(func.sum(Author.id).filter(Author.id > 0)),
        "a window function": select(Author.id, func.rank().over(order_by=Author.id)).order_by(Author.id),
        "LIMIT or OFFSET": select(Author.id).order_by(Author.id).limit(2),
        "DISTINCT": select(Author.region).distinct().order_by(Author.region),
        "nothing": select(Author.id, counted.label("n")).order_by(Author.id),
    }
    found: list[Any] = []
    async for batch in ctx.stream(forms[form], on_restart="start_over"):
        found += [list(row) for row in batch]
    return found


async def list_seen(database: Database) -> list[int]:
    async with database.session() as session:
        return list(await session.scalars(select(Author.id).where(Author.seen == 1).order_by(Author.id)))


@pytest.mark.parametrize("name", ["walk_authors", "sweep_authors"])
async def test_run_processes_the_selected_part_and_redis_never_has_its_sql(
    cli: CommandLine, fast: Settings, client: Client, database: Database, name: str
) -> None:
    await fill_authors(database, 60)
    ran = await cli("enqueue", name, "--id", "part", "--subset", "id % 2 = 0", "--from", "41", **PACKAGE)
    assert ran.returncode == 0, ran.stderr
    assert b"id % 2" not in (await client.redis.get("arq:job:part") or b"")
    async with working(fast, walk_authors, sweep_authors):
        assert await client.run("part").result(timeout=120) == 10
    assert await list_seen(database) == list(range(42, 61, 2))


async def fill_books(database: Database, count: int) -> None:
    """Insert authors, each with two books, in the opposite order of their ids."""
    await fill_authors(database, count)
    rows = [{"id": n, "author_id": count - n // 2, "title": "t"} for n in range(2 * count)]
    async with database.transaction() as session:
        await session.execute(insert(Book), rows)


PARTS = {("--subset", "id <= 2"): [1, 2], ("--subset", "name IN ('n1', 'n2')"): [1, 2], ("--from", "5"): [5, 6]}


@pytest.mark.parametrize("part", PARTS)
async def test_purge_of_a_part_deletes_the_children_of_its_parents_alone(
    cli: CommandLine, fast: Settings, client: Client, database: Database, part: tuple[str, ...]
) -> None:
    await fill_books(database, 6)
    planned = await cli("plan", "purge_authors", *part, "--json", **PACKAGE)
    assert [loop["refusal"] for loop in json.loads(planned.stdout)["loops"]] == [""], planned.stderr
    tried = await cli("try", "purge_authors", *part, "--batches", "1", "--json", **PACKAGE)
    assert [batch["rows"] for batch in json.loads(tried.stdout)["batches"]] == [2], tried.stderr
    ran = await cli("enqueue", "purge_authors", "--id", "part", *part, **PACKAGE)
    assert ran.returncode == 0, ran.stderr
    async with working(fast, purge_authors):
        assert await client.run("part").result(timeout=120) == 2
    kept = [n for n in range(1, 7) if n not in PARTS[part]]
    async with database.session() as session:
        assert list(await session.scalars(select(Author.id).order_by(Author.id))) == kept
        assert list(await session.scalars(select(Book.author_id).order_by(Book.author_id))) == sorted(kept * 2)


async def test_trial_of_one_row_deletes_its_children_alone(settings: Settings, database: Database) -> None:
    await fill_books(database, 6)
    trial = await try_job(purge_authors, settings, key=[1])
    changes = [change for batch in trial.batches for change in batch.changes]
    assert sorted((change.table, change.before["id"]) for change in changes) == [
        ("author", 1),
        ("book", 10),
        ("book", 11),
    ]


async def test_subset_of_the_rows_of_totals_is_refused_and_whole_groups_can_be_selected(
    cli: CommandLine, fast: Settings, client: Client, database: Database
) -> None:
    await fill_books(database, 6)
    refused = await cli("enqueue", "count_books", "--subset", "id <= 2", **PACKAGE)
    assert refused.returncode != 0
    assert "has GROUP BY: run the job without --subset, select whole groups with --from" in error_line(refused)
    assert await client.redis.dbsize() == 0
    ran = await cli("enqueue", "count_books", "--id", "part", "--from", "5", **PACKAGE)
    assert ran.returncode == 0, ran.stderr
    async with working(fast, count_books):
        assert await client.run("part").result(timeout=120) == [[5, 2], [6, 2]]


@pytest.mark.parametrize("form", ["an aggregate", "a window function", "LIMIT or OFFSET", "DISTINCT", "nothing"])
async def test_subset_of_the_rows_that_results_are_computed_from_is_refused(
    settings: Settings, database: Database, form: str
) -> None:
    await fill_books(database, 6)
    [loop] = (await plan_part(sum_all, settings, {"form": form}, Selection("id <= 2"))).loops
    assert loop.refusal == "" if form == "nothing" else f"because the statement has {form}: " in loop.refusal


@job
async def walk_lines(ctx: JobContext) -> None:
    """Walk a source that is no table."""
    async for _ in ctx.walk(TextLines("/none")):
        pass


async def test_plan_describes_the_selected_part(cli: CommandLine, database: Database) -> None:
    await fill_authors(database, 60)
    async with database.transaction() as session:
        await session.execute(text("ANALYZE author"))
    part = ("--subset", "id <= 50", "--from", "41", "--json")
    ran = await cli("plan", "walk_authors", *part, **PACKAGE)
    [loop] = json.loads(ran.stdout)["loops"]
    assert ran.returncode == 0 and "id <= 50" in loop["sql"] and loop["rows"] <= 20
    refused = await cli("plan", "walk_lines", *part, **PACKAGE)
    assert refused.returncode == 1 and "--subset and --from are for loops over tables" in refused.stdout
    wrong = await cli("plan", "walk_authors", "--subset", "nonsense = 1", **PACKAGE)
    assert wrong.returncode != 0 and "nonsense" in error_line(wrong)


async def test_run_that_has_lost_its_part_does_not_walk_everything(
    cli: CommandLine, fast: Settings, client: Client, database: Database
) -> None:
    await fill_authors(database, 20)
    assert (await cli("enqueue", "sweep_authors", "--id", "part", "--subset", "id < 5", **PACKAGE)).returncode == 0
    async with database.transaction() as session:
        await session.execute(text("DELETE FROM worker.selection"))
    async with working(fast, sweep_authors):
        with pytest.raises(JobFailed, match="was enqueued for a part"):
            await client.run("part").result(timeout=120)
    assert await list_seen(database) == []


@pytest.mark.parametrize("subset", ["nonsense = 1", "true) OR (true", "1; DROP TABLE author", "count(*) = 1"])
async def test_part_that_cannot_be_selected_is_not_enqueued(
    cli: CommandLine, client: Client, database: Database, subset: str
) -> None:
    await fill_authors(database, 5)
    ran = await cli("enqueue", "walk_authors", "--subset", subset, **PACKAGE)
    assert ran.returncode != 0 and error_line(ran)
    assert await client.redis.dbsize() == 0


async def test_id_of_a_part_is_used_once(cli: CommandLine, client: Client, database: Database) -> None:
    await fill_authors(database, 5)
    assert (await cli("enqueue", "walk_authors", "--id", "r", "--subset", "id < 3", **PACKAGE)).returncode == 0
    again = await cli("enqueue", "walk_authors", "--id", "r", "--subset", "id < 4", **PACKAGE)
    assert again.returncode == 2 and "give another --id" in error_line(again)
