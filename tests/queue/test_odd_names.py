"""Names and values that no server can store: both clients refuse them by one kind of error."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis
from sqlalchemy import select

from tests.models import Author
from tests.queue.sync_jobs import (
    Operation,
    answer_of,
    open_sync_client,  # noqa: F401  (the fixture `sync`)
)
from tests.support.authors import fill_authors
from tests.support.command_line import CommandLine, error_line
from tests.support.workers import working
from worker import Client, InvalidArguments, JobContext, Settings, SyncClient, job
from worker.db.engine import Database

HALF = "\udcff"  # as a shell passes the byte ff


@job
async def job_of_seven(ctx: JobContext) -> None:
    """Quarantine an author."""
    async for batch in ctx.chunks(select(Author), size=10, name="loop", on_error="quarantine", quarantine_limit=0.5):
        for author in batch:
            if author.id == 7:
                raise ValueError("seven")


REFUSED: dict[str, Operation] = {
    "a status": lambda c: c.run(HALF).status(),
    "a pause": lambda c: c.pause(HALF),
    "a cancel": lambda c: c.cancel(HALF),
    "a run": lambda c: c.find_run(HALF),
    "a search": lambda c: c.recorded_runs(search=HALF),
    "NUL": lambda c: c.recorded_runs(job="\x00"),
    "no text": lambda c: c.pause(None),
    "a large row": lambda c: c.quarantined_rows(row_id=2**70),
    "a negative limit": lambda c: c.recorded_runs(limit=-1),
    "a number as id": lambda c: c.run(5),
    "a number as id of a new run": lambda c: c.enqueue(job_of_seven.options(id=5)),
    "a queue that is another key": lambda c: c.enqueue(job_of_seven.options(queue="worker:dead:at")),
    "a queue that is another key, for many": lambda c: c.enqueue_many(job_of_seven.options(queue="arq:abort"), [{}]),
    "a queue that is another key, for a group": lambda c: c.group([job_of_seven.options(queue="arq:abort").call()]),
    "a queue that is not printable": lambda c: c.enqueue_by_name("job_of_seven", queue="a\u200b"),
    "no job": lambda c: c.enqueue(""),
    "no job, for many": lambda c: c.enqueue_many("\x00", [{}]),
    "a group without a name": lambda c: c.group([job_of_seven.call()], id=""),
    "a group with a long name": lambda c: c.group([job_of_seven.call()], id="x" * 500),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_both_clients_refuse_what_no_server_can_store(
    client: Client, sync: SyncClient, database: Database, name: str
) -> None:
    for one in (client, sync):
        with pytest.raises(InvalidArguments):
            await answer_of(REFUSED[name], one)


async def test_the_command_line_refuses_a_name_that_is_not_utf_8_in_a_line(
    cli: CommandLine, database: Database, redis: Redis
) -> None:
    for command in (["runs", "show"], ["cancel"], ["pause"], ["runs", "--search"], ["dead", "show"]):
        ran = await cli(*command, HALF)
        assert ran.returncode == 2, (command, ran)
        assert "\\udcff" in error_line(ran)


async def test_rows_of_a_run_with_the_longest_id_are_retried(
    client: Client, fast: Settings, database: Database, redis: Redis
) -> None:
    await fill_authors(database, 20)
    async with working(fast, job_of_seven):
        run = await client.enqueue(job_of_seven.options(id="i" * 500))
        await run.result(timeout=60)
        [again] = await client.retry_quarantined(run.id)
        await again.result(timeout=60)
    assert await again.status() == "succeeded"
