"""Looks at jobs through the API: plan, trial, the fields that are not valid; and searches and the outbox."""

from __future__ import annotations

from typing import Any

import httpx
from redis.asyncio import Redis
from sqlalchemy import func, select, text

from tests.models import Author
from tests.support.authors import fill_authors
from tests.web.jobs import greet
from worker import Client
from worker.db.engine import Database
from worker.queue.dead_letters import encode_letter


async def test_a_job_is_planned_and_tried_and_nothing_changes(http: httpx.AsyncClient, database: Database) -> None:
    await fill_authors(database, 30)
    plan = (await http.post("/jobs/walk/plan", json={})).json()
    [loop] = plan["loops"]
    assert (loop["kind"], loop["table"], loop["key"], plan["ended"]) == ("chunks", "author", ["author.id"], "")
    trial = (await http.post("/jobs/walk/try", json={"batches": 2, "rows": 3})).json()
    assert [batch["rows"] for batch in trial["batches"]] == [3, 3]
    assert trial["batches"][0]["changes"][0]["after"] == {"seen": 100}
    async with database.session() as session:
        assert await session.scalar(select(func.sum(Author.seen))) == 0

    refused = (await http.post("/jobs/greet/plan", json={"arguments": {"name": "Ada"}})).json()
    assert refused["type"].endswith("not-possible") and "no durable loop" in refused["detail"]
    assert (await http.post("/jobs/nothing/plan", json={})).status_code == 404
    assert (await http.post("/jobs/walk/try", json={"rows": 0})).status_code == 422


async def test_each_argument_that_is_not_valid_is_named_with_its_place(http: httpx.AsyncClient) -> None:
    body: dict[str, Any] = {"job": "greet", "arguments": {"times": "many", "day": "2026-13-01", "other": 1}}
    document = (await http.post("/runs", json=body)).json()
    places = {one["where"]: one["message"] for one in document["errors"]}
    assert places.keys() == {f"body.arguments.{name}" for name in ("name", "times", "day", "other")}
    assert "valid integer" in places["body.arguments.times"]


async def test_an_extra_run_of_a_cron_job_takes_arguments(http: httpx.AsyncClient, redis: Redis) -> None:
    made = (await http.post("/cron/nightly/run", json={"arguments": {"depth": "deep"}})).json()
    assert b'"deep"' in (await redis.get(f"arq:job:{made['id']}") or b"")
    assert (await http.post("/cron/nightly/run", json={"arguments": {"depth": "none"}})).status_code == 422


async def test_dead_letters_are_found_by_their_text(http: httpx.AsyncClient, redis: Redis) -> None:
    for number, error in enumerate(["Timeout of mail", "no such file"]):
        about: dict[str, Any] = {"job": "greet", "queue": "arq:queue", "attempts": 1, "trace": "", "in_ledger": False}
        letter = encode_letter(b"{}", error=error, **about)
        await redis.hset("worker:dead", mapping={f"letter-{number}": letter})  # type: ignore[misc]
        await redis.zadd("worker:dead:at", {f"letter-{number}": number})

    async def search(text: str) -> list[str]:
        page = (await http.get("/dead-letters", params={"search": text})).json()
        return [one["id"] for one in page["items"]]

    assert await search("timeout") == ["letter-0"]
    assert await search("LETTER-1") == ["letter-1"]
    assert await search("greet") == ["letter-1", "letter-0"]
    assert await search("100%") == []


async def test_refused_rows_of_the_outbox_are_tried_again_or_deleted(
    http: httpx.AsyncClient, client: Client, database: Database
) -> None:
    async with database.session() as session:
        for number in range(4):
            await client.enqueue_in(session, greet, name=f"Ada {number}")
        await session.execute(text("UPDATE worker.outbox SET problem = 'too long' WHERE id % 2 = 0"))
        await session.commit()
    page = (await http.get("/outbox", params={"limit": 3})).json()
    assert (page["waiting"], page["refused"], len(page["items"])) == (2, 2, 3)
    assert len((await http.get("/outbox", params={"cursor": page["next_cursor"]})).json()["items"]) == 1
    refused = [one["id"] for one in (await http.get("/outbox", params={"refused": "true"})).json()["items"]]
    waiting = [one["id"] for one in page["items"] if one["problem"] is None]
    assert (await http.post("/outbox/delete", json={"rows": [refused[0], *waiting]})).json() == {"changed": 1}
    assert (await http.post("/outbox/retry", json={"all": True})).json() == {"changed": 1}
    assert (await http.post("/outbox/retry", json={})).status_code == 422
    page = (await http.get("/outbox", params={"search": "GREET"})).json()
    assert (page["waiting"], page["refused"], len(page["items"])) == (3, 0, 3)
    orders = [one["order"] for one in (await http.get("/orders")).json()["items"]]
    assert orders == []  # workers copy orders to the ledger
