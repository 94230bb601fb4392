"""`worker try` and `worker plan` on the command line: a trial, and keys and subsets that do not fit."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import select, text, update

from tests.models import Author
from tests.plan.test_trial import fill
from tests.support.command_line import CommandLine, error_line
from worker import JobContext, job
from worker.types import Database


async def test_trial_on_the_command_line(cli: CommandLine, database: Database) -> None:
    async with database.transaction() as session:
        await session.execute(
            text(
                "CREATE TABLE users (id int PRIMARY KEY, name text, email text, is_active bool, "
                "created_at timestamptz, last_seen_at timestamptz, score int NOT NULL)"
            )
        )
        await session.execute(
            text(
                "INSERT INTO users (id, name, email, score) SELECT i, E'\\x1b[31m' || i, 'x', 0 "
                "FROM generate_series(1, 9) AS i"
            )
        )
    ran = await cli("try", "process_all_users", "--arg", "points=2", "--rows", "2", "--subset", "id > 3")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "batch 3: 2 rows, keys 8 to 9" in ran.stdout and "are real" in ran.stdout and "\x1b" not in ran.stdout
    made = json.loads((await cli("try", "process_all_users", "--key", "7", "--json")).stdout)
    assert made["batches"][0]["changes"] == [
        {"table": "users", "action": "UPDATE", "key": {"id": 7}, "before": {"score": 0}, "after": {"score": 1}}
    ]
    wrong = await cli("try", "process_all_users", "--subset", "true; SELECT 1")
    assert wrong.returncode == 2 and "outside of a quoted text" in error_line(wrong)


@pytest.mark.parametrize("key", ["abc", "[1,2]", "[]", "null", "1.5"])
@pytest.mark.parametrize("option", ["--from", "--key"])
async def test_a_key_that_does_not_fit_the_loop_is_named_with_the_key_of_the_loop(
    cli: CommandLine, database: Database, option: str, key: str
) -> None:
    await fill(database)
    ran = await cli("try", "change_each", option, key, LONGHAUL_WORKER__PACKAGES='["tests.plan.test_trial"]')
    assert ran.returncode == 2
    assert error_line(ran).startswith(f"worker: {option}")
    assert "the key of this loop" in ran.stderr or "whose key is author.id (int)" in ran.stderr


@job
async def change_by_code(ctx: JobContext) -> None:
    """Walk by a number and a text."""
    async for batch in ctx.chunks(select(Author), by=[Author.region, Author.code], size=10):
        for author in batch:
            author.seen += 1


@pytest.mark.parametrize("option", ["--from", "--key"])
async def test_a_number_can_stand_for_a_text_in_a_key(cli: CommandLine, database: Database, option: str) -> None:
    await fill(database)
    async with database.transaction() as session:
        await session.execute(update(Author).where(Author.id == 3).values(code="777"))
    package = {"LONGHAUL_WORKER__PACKAGES": '["tests.plan.test_trial_command"]'}
    ran = await cli("try", "change_by_code", option, "[3, 777]", "--rows", "1", "--json", **package)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["batches"][0]["first_key"] == [3, "777"]


@pytest.mark.parametrize("command", ["plan", "try"])
@pytest.mark.parametrize("subset", ["id <", "nope = 1", "id + 1"])
async def test_a_subset_that_postgresql_refuses_is_named(
    cli: CommandLine, database: Database, command: str, subset: str
) -> None:
    await fill(database)
    package = {"LONGHAUL_WORKER__PACKAGES": '["tests.plan.test_trial"]'}
    ran = await cli(command, "change_each", "--subset", subset, **package)
    assert ran.returncode == 1
    assert f"--subset {subset!r} is a part of the statement" in ran.stderr
