"""`worker enqueue --subset --from`: runs over a part of their walks."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import select, text, update

from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.command_line import CommandLine, error_line
from tests.support.workers import working
from worker import Client, JobContext, JobFailed, Settings, job
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
