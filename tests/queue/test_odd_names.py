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
from worker.queue import keys

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
    "a pause that workers ignore": lambda c: c.pause("a\nb"),
    "a pause of a long name": lambda c: c.pause("x" * 501),
    "a pause by a long value": lambda c: c.pause("job_of_seven", where={"text": "x" * 500}),
    "a cancel by a long value": lambda c: c.cancel("job_of_seven", where={"text": "x" * 500}),
    "a pace that workers ignore": lambda c: c.pace("\u202e", rows_per_second=1),
    "a limit that workers ignore": lambda c: c.limit("\x1b[31m", running=1),
    "a rate that workers ignore": lambda c: c.limit_rate("x" * 501, runs_per_second=1),
    "a large row": lambda c: c.quarantined_rows(row_id=2**70),
    "a negative limit": lambda c: c.recorded_runs(limit=-1),
    "a number as id": lambda c: c.run(5),
    "a number as id of a new run": lambda c: c.enqueue(job_of_seven.options(id=5)),
    "a queue that is another key": lambda c: c.enqueue(job_of_seven.options(queue="worker:dead:at")),
    "a queue that is another key, for many": lambda c: c.enqueue_many(job_of_seven.options(queue="arq:abort"), [{}]),
    "a queue that is another key, for a group": lambda c: c.group([job_of_seven.options(queue="arq:abort").call()]),
    "a queue that is another key, for a chain": lambda c: c.enqueue(
        job_of_seven.options(then=job_of_seven.options(queue="worker:dead:at").call())
    ),
    "a queue that is another key, for a callback": lambda c: c.group(
        [job_of_seven.call()], then=job_of_seven.options(queue="arq:abort").call()
    ),
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


async def test_orders_that_workers_ignored_can_be_removed(client: Client, redis: Redis) -> None:
    await redis.sadd(keys.PAUSED, "a\nb")
    for key in (keys.PACE, keys.LIMITS, keys.RATES):
        await redis.hset(key, "a\nb", "1")
    assert await client.resume("a\nb") == 1
    await client.pace("a\nb", rows_per_second=None)
    await client.limit("a\nb", running=None)
    await client.limit_rate("a\nb", runs_per_second=None)
    assert await redis.exists(keys.PAUSED, keys.PACE, keys.LIMITS, keys.RATES) == 0
    await client.pace("\u4e1c", rows_per_second=1_234_567.5)
    assert (await client.limits()).rows_per_second == {"\u4e1c": 1_234_567.5}


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
