"""A batch that loses its connection, or whose own servers are away, ends its run: a table of cells with a bound."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import product
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from redis.asyncio import Redis
from sqlalchemy import Integer, func, select, text, update

from tests.models import Author
from tests.support.authors import count_seen, fill_authors
from tests.support.workers import working
from worker import Client, JobContext, JobFailed, Settings, job
from worker.db.engine import Database
from worker.embedded.process import free_port
from worker.ledger import Ledger

ROWS, SIZE, BAD = 40, 10, 14
LIMIT_SECONDS = 90
ATTEMPTS = 2
#: The place of the fault, its kind, and the loop, for the job that runs in the worker.
cell: dict[str, Any] = {}
entries: list[int] = []
#: The rows of each batch that its body has seen.
sizes: list[int] = []

LOOPS = ["objects", "columns", "unlocked", "skip_locked", "stream", "sweep"]
#: Faults that end the connection of the batch, by the place in which they happen.
IN_SERVER = [("body", "kill"), ("commit", "kill"), ("read", "kill")]
#: Faults of the body alone.
IN_BODY = [
    ("body", "idle"),
    ("body", "transaction timeout"),
    ("body", "own redis"),
    ("body", "own postgres"),
    ("body", "stop"),
]
CELLS = [
    (where, how, loop, quarantine)
    for (where, how), loop, quarantine in product(IN_SERVER + IN_BODY, LOOPS, [False, True])
    if not (loop == "sweep" and (quarantine or how != "kill" or where == "read"))
    if not (loop == "unlocked" and how == "idle")  # its transaction begins after the wait
]
SHORT = [
    ("body", "kill", "objects", False),
    ("read", "kill", "stream", True),
    ("body", "own redis", "skip_locked", False),
]


@job(max_attempts=ATTEMPTS)
async def walk_into_a_fault(ctx: JobContext) -> int:
    entries.append(ctx.attempt)
    assert len(entries) < 30, "the job is entered without end"
    loop, options = cell["loop"], {"size": SIZE}
    if cell["quarantine"]:
        options |= {"on_error": "quarantine", "quarantine_limit": 5}
    key = func.kill_at(Author.id, type_=Integer) if cell["where"] == "read" else Author.id
    columns = select(Author.id, key.label("key"))
    if loop == "sweep":
        seen = Author.seen + 1
        if cell["where"] == "body":
            seen = seen + func.kill_at(Author.id, type_=Integer) * 0
        return await ctx.sweep(update(Author).values(seen=seen), size=SIZE)
    if loop == "stream":
        walk: Any = ctx.stream(columns.order_by(Author.id), **options)
    elif loop == "objects" and cell["where"] != "read":
        walk = ctx.chunks(select(Author), **options)
    else:
        walk = ctx.chunks(columns, lock=loop != "unlocked", skip_locked=loop == "skip_locked", **options)
    async for batch in walk:
        ids = [row.id for row in batch]
        sizes.append(len(ids))
        count = update(Author).where(Author.id.in_(ids)).values(seen=Author.seen + 1)
        await batch.session.execute(count.execution_options(synchronize_session=False))
        if BAD in ids and cell["where"] == "body":
            await fail_in_body(batch)
    return ctx.rows_done


async def fail_in_body(batch: Any) -> None:
    match cell["how"]:
        case "kill":
            await batch.session.execute(select(func.kill_at(BAD)))
        case "idle":
            await asyncio.sleep(1.3)
        case "transaction timeout":
            await batch.session.execute(text("SET LOCAL transaction_timeout = '200ms'"))
            await batch.session.execute(text("SELECT pg_sleep(30)"))
        case "own redis":
            async with Redis(port=free_port()) as other:
                await other.ping()
        case "own postgres":
            await asyncpg.connect(f"postgresql://localhost:{free_port()}/none")
        case "stop":
            next(iter([]))


@pytest_asyncio.fixture
async def faulty(database: Database) -> AsyncIterator[None]:
    """Forty rows, one of which ends the connection that touches it."""
    entries.clear()
    sizes.clear()
    await fill_authors(database, ROWS)
    async with database.transaction() as session:
        for sql in (
            f"CREATE FUNCTION kill_at(id int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN IF id = {BAD} THEN "
            f"PERFORM pg_terminate_backend(pg_backend_pid()); PERFORM pg_sleep(5); END IF; RETURN id; END $$",
            "CREATE FUNCTION kill_late() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN PERFORM kill_at(NEW.id); RETURN NULL; END $$",
        ):
            await session.execute(text(sql))
    yield
    async with database.transaction() as session:
        await session.execute(text("DROP FUNCTION kill_late CASCADE"))
        await session.execute(text("DROP FUNCTION kill_at CASCADE"))


@pytest.mark.parametrize(
    ("where", "how", "loop", "quarantine"),
    [pytest.param(*one, marks=[] if one in SHORT else pytest.mark.long) for one in CELLS],
)
async def test_batch_that_always_fails_ends_its_run(
    faulty: None,
    database: Database,
    client: Client,
    fast: Settings,
    where: str,
    how: str,
    loop: str,
    quarantine: bool,
) -> None:
    cell.update(where=where, how=how, loop=loop, quarantine=quarantine)
    if where == "commit":
        async with database.transaction() as session:
            await session.execute(
                text(
                    "CREATE CONSTRAINT TRIGGER late AFTER UPDATE ON author DEFERRABLE INITIALLY DEFERRED "
                    "FOR EACH ROW EXECUTE FUNCTION kill_late()"
                )
            )
    limit = {"idle_in_transaction_timeout_seconds": 0.7} if how == "idle" else {}
    settings = fast.model_copy(update={"database": fast.database.model_copy(update=limit)})
    is_set_aside = quarantine and how in ("own redis", "own postgres", "stop")
    async with asyncio.timeout(LIMIT_SECONDS), working(settings, walk_into_a_fault):
        run = await client.enqueue(walk_into_a_fault)
        if is_set_aside:  # an error of the row as any other
            assert await run.result() == ROWS - 1
        else:
            with pytest.raises(JobFailed) as failed:
                await run.result()
    if is_set_aside:
        assert await count_seen(database) == {0: 1, 1: ROWS - 1}
        assert [row.key for row in await Ledger(database).quarantine.list_rows()] == [[BAD]]
        return
    # A half that is committed is progress, after which the attempts are counted from the first again.
    assert entries[-ATTEMPTS:] == list(range(1, ATTEMPTS + 1)), entries
    seen = await count_seen(database)
    assert set(seen) <= {0, 1}
    assert seen.get(1, 0) <= BAD - 1  # the rows before it are done once
    known = await Ledger(database).find(run.id)
    assert known is not None
    assert known.state == "dead"
    told = str(failed.value)
    if how == "idle":
        assert "idle_in_transaction_timeout_seconds" in told
        assert "lock=False" in told
    elif how in ("kill", "transaction timeout"):
        assert "a connection was lost or refused, but the worker's own PostgreSQL accepts new ones" in told
        assert "step '1-" in told
    if how in ("idle", "transaction timeout") or (how, where) == ("kill", "body"):
        assert loop == "sweep" or sizes[-1] < SIZE, "the batch is halved from attempt to attempt"
