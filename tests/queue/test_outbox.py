"""Rows of the outbox: what a client may write, and what a relay refuses."""

from __future__ import annotations

import asyncio
import json
from typing import Annotated, Any

import pytest
from pydantic import AfterValidator
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from tests.models import Author
from worker import Client, InvalidArguments, JobContext, Settings, SyncClient, job
from worker.db.engine import Database
from worker.errors import DatabaseNotMigrated, InvalidPayload
from worker.queue.outbox import check_row, make_row
from worker.queue.store import Lock

PLAIN = '{"t":null,"f":"greet","a":[],"k":{"name":"Ada"},"et":1}'


@job
async def greet(ctx: JobContext, name: str) -> None:
    """Do nothing."""


def _look_up(name: str) -> str:
    return {"Ada": "Lovelace"}[name]


@job(unique=True)
async def known_only(ctx: JobContext, name: Annotated[str, AfterValidator(_look_up)]) -> None:
    """Take a name that a validator looks up."""


def checked(run_id: str = "a", payload: str = PLAIN, **values: Any) -> dict[str, Any]:
    """Return the description of a row that a relay accepts."""
    row = {"queue": "arq:queue", "priority": 0, "options": None, "max_payload_bytes": 1024, "jobs": {}, **values}
    described: dict[str, Any] = json.loads(check_row(run_id, payload, **row).description)
    return described


def test_a_row_that_a_client_makes_passes_the_relay() -> None:
    lock = Lock("greet:mark", "active", 1000)
    row = make_row("a", PLAIN, job="greet", queue="q", lock=lock, replace=True, fair="2 tenant=x", priority=4)
    assert checked(queue=row["queue"], priority=row["priority"], options=json.dumps(row["options"])) == {
        "queue": "q",
        "level": "4",
        "fair": "2 tenant=x",
        "replace": True,
        "lock": "greet:mark",
        "counts": "active",
        "lock_ms": 1000,
    }


@pytest.mark.parametrize(
    "values",
    [
        {"run_id": "a\x1bb"},
        {"queue": "worker:paused"},
        {"queue": "arq:result:x"},
        {"queue": "a\nb"},
        {"payload": "[]"},
        {"payload": "\x80\x05."},
        {"payload": '{"f": ""}'},
        {"payload": '{"f": "greet", "only": ["run", "step"]}'},
        {"payload": '{"f": "greet", "ledger": true}'},
        {"payload": '{"f": "greet", "pickle": true}'},
        {"payload": '{"f": "greet", "g": ["group", 1, true]}'},
        {"payload": '{"f": "greet", "hand": ["run", "step", 2, 1]}'},
        {"payload": '{"f": "greet", "then": [{"f": "greet", "k": {}, "q": "worker:dead:at"}]}'},
        {"payload": '{"f": "greet", "k": {"name": "' + "x" * 1024 + '"}}'},
        {"options": "[]"},
        {"options": '{"unknown": 1}'},
        {"options": '{"replace": 1}'},
        {"options": '{"fair": 1}'},
        {"options": '{"lock": "a", "counts": "ever", "lock_ms": 1}'},
        {"options": '{"lock": "a", "counts": "time", "lock_ms": 0}'},
        {"options": '{"lock_ms": 1}'},
    ],
    ids=str,
)
def test_a_relay_refuses_what_no_client_may_enqueue(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidPayload):
        checked(**values)


async def test_a_validator_that_raises_any_error_refuses_the_arguments_and_stops_no_relay(
    client: Client, database: Database
) -> None:
    payload = '{"f":"known_only","k":{"name":"Eve"}}'
    assert checked(payload=payload, jobs={"known_only": known_only})["level"] == "0"
    async with database.session() as session:
        with pytest.raises(InvalidArguments, match="a validator raised KeyError: 'Eve'"):
            await client.enqueue_in(session, known_only, "Eve")


async def test_enqueue_in_explains_what_it_cannot_write(client: Client, database: Database) -> None:
    with pytest.raises(InvalidArguments, match="AsyncEngine is not an AsyncSession"):
        await client.enqueue_in(database.engine, greet, "Ada")  # type: ignore[call-overload]
    async with database.session() as session:
        for bad in (greet.options(queue="worker:paused"), greet.options(id="\n")):
            with pytest.raises(InvalidArguments):
                await client.enqueue_in(session, bad, "Ada")
        with pytest.raises(InvalidArguments, match="name"):
            await client.enqueue_in(session, greet, 7)  # type: ignore[arg-type]
        with pytest.raises(InvalidArguments, match="not the name of a job"):
            await client.enqueue_in(session, "", name="Ada")
        assert await session.scalar(text("SELECT count(*) FROM worker.outbox")) == 0
        await session.execute(text("ALTER TABLE worker.outbox RENAME TO elsewhere"))
        with pytest.raises(DatabaseNotMigrated, match="run `worker migrate`"):
            await client.enqueue_in(session, greet, "Ada")
        await session.rollback()


async def test_both_clients_show_the_outbox_and_change_its_refused_rows(
    settings: Settings, client: Client, database: Database
) -> None:
    async with database.session() as session:
        await client.enqueue_many_in(session, greet, [{"name": "Ada"}, {"name": "Eve"}, {"name": "Bob"}])
        await session.execute(text("UPDATE worker.outbox SET problem = 'odd' WHERE payload LIKE '%Bob%'"))
        await session.commit()
    with SyncClient(settings) as sync:
        [row] = await asyncio.to_thread(sync.outbox_rows, refused=True, search="ODD")
        assert await client.outbox_rows(refused=True, search="ODD") == [row]
        assert await client.delete_outbox(row.id - 1) == []  # it waits for a relay
        assert await asyncio.to_thread(sync.retry_outbox, row.id) == [row.id]
        assert await client.retry_outbox() == await asyncio.to_thread(sync.delete_outbox) == []
        assert len(await client.outbox_rows()) == 3


async def test_a_session_without_the_workers_database_is_refused_with_advice(
    settings: Settings, client: Client, database: Database
) -> None:
    async with AsyncSession(binds={Author: database.engine}) as session:
        with pytest.raises(InvalidArguments, match=r"pass a connection, session\.connection\("):
            await client.enqueue_in(session, greet, "Ada")
        connection = await session.connection(bind_arguments={"mapper": Author})
        run = await client.enqueue_in(connection, greet, "Ada")
        assert await connection.scalar(text("SELECT run_id FROM worker.outbox")) == run.id
    with SyncClient(settings) as sync, Session(create_engine("sqlite://")) as other:
        for one in (other, other.connection()):
            with pytest.raises(InvalidArguments, match="on a database of sqlite: use a session of the PostgreSQL"):
                sync.enqueue_in(one, greet, "Ada")


@pytest.mark.parametrize(
    ("job_", "calls", "problem"),
    [
        (greet, ["Ada"], "call 0 is a value of type str: give its arguments by name"),
        ("greet", [{"name": "Ada"}, None], "call 1 is a value of type NoneType"),
        (greet.function, [{"name": "Ada"}], "greet is not a job: decorate its function with @job"),
    ],
    ids=["text", "nothing", "function"],
)
async def test_many_runs_need_a_job_and_arguments_by_name(
    client: Client, database: Database, job_: Any, calls: list[Any], problem: str
) -> None:
    with pytest.raises(InvalidArguments, match=problem):
        await client.enqueue_many(job_, calls)
    async with database.session() as session:
        with pytest.raises(InvalidArguments, match=problem):
            await client.enqueue_many_in(session, job_, calls)
