"""Data never act as markup, emoji or terminal control, in any command and on any terminal."""

from __future__ import annotations

import json
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import select

from tests.models import Author
from tests.support.authors import fill_authors
from tests.support.command_line import CommandLine, Ran
from tests.support.waiting import until
from tests.support.workers import working
from worker import Client, JobContext, NonRetryableError, Settings, job
from worker.db.engine import Database
from worker.queue import keys

ID = "eu:fire:1[/x]"
TEXT = "[/x] [red]:fire: \x1b[31m\x07\r\x9b2J\u202e caf\u00e9 \u2588"


@job(name="shop[/x]:fire:")
async def fail(ctx: JobContext, text: str = "") -> None:
    """Fail with a hostile error: [/x] :fire:."""
    raise NonRetryableError(TEXT)


@job(name="walk[/x]:fire:")
async def walk(ctx: JobContext) -> int:
    """Put a row into quarantine."""
    async for batch in ctx.chunks(
        select(Author), size=10, on_error="quarantine", quarantine_limit=5, name="step[/x]:fire:"
    ):
        for author in batch:
            if author.code == "3":
                raise ValueError(TEXT)
    return ctx.rows_done


@pytest.fixture
async def world(database: Database, redis: Redis, client: Client, fast: Settings) -> None:
    """Runs, letters, rows, workers and commands with hostile texts."""
    await fill_authors(database, 5)
    async with database.transaction() as session:
        for number, author in enumerate((await session.scalars(select(Author).order_by(Author.id))).all()):
            author.code, author.name = str(number), f"[/x]:fire: {number}"
    async with working(fast, fail, walk):
        await client.enqueue(fail.options(id=ID), text=TEXT)
        await client.enqueue(walk.options(id="walk:" + ID))
        await until(lambda: redis.hexists(keys.DEAD, ID))
        await until(lambda: redis.exists(keys.RESULT + "walk:" + ID))
    await client.enqueue(fail.options(id="waits:" + ID, delay=3600), text=TEXT)
    seen = {"pid": 1, "host": TEXT, "queue": "arq:queue", "state": "running", "jobs": [], "max_jobs": 1, "done": 0}
    times = dict.fromkeys(("seen_at", "started_at"), "2099-01-01T00:00:00+00:00")
    await redis.hset(keys.WORKERS, TEXT, json.dumps(seen | times))
    await redis.hset(keys.RUN + "waits:" + ID, mapping={"job": TEXT, "error": TEXT, "state": TEXT, "last_key": TEXT})
    await redis.sadd(keys.PAUSED, ID, TEXT)
    await redis.hset(keys.PACE, ID, TEXT)
    await redis.hset(keys.LIMITS, TEXT, TEXT)


#: Each command that shows data, the texts that it has to show, and its exit code.
COMMANDS: list[tuple[tuple[str, ...], tuple[str, ...], int]] = [
    (("status",), (ID,), 0),
    (("runs",), (ID, "walk[/x]:fire:"), 0),
    (("runs", "show", "walk:" + ID), ("walk:" + ID, "step[/x]:fire:"), 0),
    (("runs", "show", ID), (ID, "[/x][red]:fire:"), 0),
    (("dead",), (ID, "shop[/x]:fire:"), 0),
    (("dead", "show", ID), (ID, "[/x][red]:fire:"), 0),
    (("quarantine",), ("walk:" + ID, "[/x][red]:fire:"), 0),
    (("quarantine", "show", "ROW"), ("walk:" + ID, "[/x]:fire:3", "[/x][red]:fire:"), 0),
    (("report", "walk:" + ID), ("walk:" + ID, "walk[/x]:fire:", "step[/x]:fire:"), 0),
    (("report", "no" + TEXT), ("[/x][red]:fire:",), 1),
    (("report", "walk:" + ID, "--html", "/no/such[/x]:fire:/file"), ("such[/x]:fire:",), 1),
    (("verify", "walk:" + ID), ("walk[/x]:fire:",), 2),
    (("require", "no" + ID), ("no" + ID,), 1),
    (("doctor",), ("worker:limits",), 1),
    (("settings",), (), 0),
    (("jobs",), (), 0),
    (("keys",), (), 0),
    (("cron",), (), 0),
    (("grants", "worker", "role[/x]:fire:"), ("role[/x]:fire:",), 0),
    (("top", "--once", "--every", "0.1"), (ID,), 0),
    (("pause", TEXT), ("[/x][red]:fire:",), 2),
    (("pause", ID), (ID,), 0),
    (("resume", "no" + ID), ("no" + ID,), 1),
    (("pace", ID, "--max-rows-per-second", "5"), (ID,), 0),
    (("cancel", "no" + ID), ("no" + ID,), 1),
    (("retry", "no" + ID), ("no" + ID,), 1),
    (("retry", "no" + ID, "--quarantined"), ("no" + ID,), 1),
    (("dead", "delete", "no" + ID), ("no" + ID,), 1),
    (("runs", "show", TEXT), ("[/x][red]:fire:",), 1),
    (("enqueue", "no[/x]:fire:"), ("no[/x]:fire:",), 2),
    (("enqueue", "no", TEXT), ("[/x][red]:fire:",), 2),
]
ENCODINGS = ["utf-8", "latin-1", "ascii"]


async def run(cli: CommandLine, arguments: tuple[str, ...], encoding: str = "utf-8") -> Ran:
    if "ROW" in arguments:
        [row] = json.loads((await cli("quarantine", "--json")).stdout)
        arguments = tuple(str(row["id"]) if part == "ROW" else part for part in arguments)
    return await cli(*arguments, PYTHONIOENCODING=encoding)


@pytest.mark.usefixtures("world")
async def test_no_command_takes_data_for_markup_emoji_or_control(cli: CommandLine) -> None:
    problems: list[Any] = []
    for arguments, texts, code in COMMANDS:
        for encoding in ENCODINGS:
            ran = await run(cli, arguments, encoding)
            place = (arguments, encoding)
            shown = "".join((ran.stdout + ran.stderr).split())
            problems += [(place, "misses", text, shown) for text in texts if "".join(text.split()) not in shown]
            lines = (ran.stdout + ran.stderr).split("\n")
            problems += [(place, "control", line) for line in lines if not line.isprintable()]
            if "\N{FIRE}" in shown or "Traceback" in ran.stderr:
                problems.append((place, shown))
            if ran.returncode != code:
                problems.append((place, ran.returncode, shown))
    assert problems == []


JSON = [("status",), ("runs",), ("runs", "show", ID), ("dead",), ("dead", "show", ID), ("quarantine",), ("doctor",)]


@pytest.mark.usefixtures("world")
@pytest.mark.parametrize("encoding", ENCODINGS)
async def test_json_of_each_command_is_valid_and_exact(cli: CommandLine, encoding: str) -> None:
    for arguments in JSON:
        ran = await run(cli, (*arguments, "--json"), encoding)
        assert "\x1b" not in ran.stdout, arguments
        assert ran.stdout, (arguments, ran.stderr)
        text = json.dumps(json.loads(ran.stdout))
        if arguments != ("doctor",):
            assert json.dumps(ID)[1:-1] in text, arguments


async def test_enqueue_prints_an_id_as_it_is(cli: CommandLine, redis: Redis, database: Database) -> None:
    ran = await cli("enqueue", "walk_nothing", "--id", ID, LONGHAUL_WORKER__PACKAGES="tests.cli.no_jobs")
    assert ran.stdout == f"{ID}\n" or ID in ran.stderr
