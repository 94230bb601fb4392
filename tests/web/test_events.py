"""Server-sent events over a real server: of all runs, of one run, after a break, and for slow subscribers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from demo.page_server import serving
from tests.support.authors import fill_authors
from tests.support.waiting import until, until_true
from tests.support.workers import with_web, working
from tests.web.jobs import JOBS, greet, walk
from worker import Client, Settings
from worker.db.engine import Database
from worker.queue import keys
from worker.web import WebApp, web_app
from worker.web.event_hub import _QUEUE, EventHub, Message
from worker.web.run_cache import RunCache


async def read_messages(response: httpx.Response) -> AsyncIterator[tuple[str, str, Any]]:
    """Yield kind, id and data of each message of a stream."""
    kind = event_id = ""
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "id":
            event_id = value
        elif name == "data":
            yield kind, event_id, json.loads(value)
            kind = event_id = ""


async def test_streams_follow_runs_over_a_break_and_end(
    settings: Settings, fast: Settings, database: Database, client: Client, redis: Redis
) -> None:
    await fill_authors(database, 30)
    settings = with_web(settings, port=0, refresh_seconds=0.001)
    app = web_app(settings, jobs=JOBS)
    async with serving(settings, app) as url, httpx.AsyncClient(base_url=url, timeout=60) as http:
        async with http.stream("GET", "/events") as all_events:
            assert all_events.headers["content-type"].startswith("text/event-stream")
            messages = read_messages(all_events)
            await until_true(lambda: app.backend.events.count == 1)
            run = await client.enqueue(walk.options(id="w"))
            async with http.stream("GET", "/runs/w/events") as one_run, working(fast, *JOBS):
                await run.result(timeout=60)
                seen = [message async for message in read_messages(one_run)]
            assert seen[0][0] == "progress" and seen[-1] == ("end", "", {"state": "succeeded"})
            assert {data["fields"]["run"] for kind, _, data in seen if kind == "event"} <= {"w"}
            first = await anext(messages)
            while first[2]["fields"].get("run") != "w":
                first = await anext(messages)
        await until_true(lambda: app.backend.events.count == 0)
        # Back after a break: the events in between come first, and each once.
        expected = [name.decode() for name, _ in await redis.xrange(keys.EVENTS, min=f"({first[1]}")]
        async with http.stream("GET", "/events", headers={"Last-Event-ID": first[1]}) as again:
            messages = read_messages(again)
            assert [(await anext(messages))[1] for _ in expected] == expected
            await redis.xadd(keys.EVENTS, {"event": "new\n\ndata: x", "run": "<script>"})
            kind, _, data = await anext(messages)
            assert (kind, data["event"]) == ("event", "new\n\ndata: x")
        assert (await http.get("/runs/w/events", headers={"Last-Event-ID": first[1]})).status_code == 204
        assert (await http.get("/events", headers={"Last-Event-ID": "1"})).status_code == 422
        await redis.xtrim(keys.EVENTS, maxlen=1)
        async with http.stream("GET", "/events", headers={"Last-Event-ID": "5-0"}) as late:
            messages = read_messages(late)
            assert (await anext(messages))[0] == "gap"
            app.backend.end_streams()  # as the server does when it is told to stop
            assert {kind async for kind, _, _ in messages} <= {"event"}
        async with app.backend.events.subscribe() as too_late:  # its request had passed the checks before
            assert (too_late.is_dropped, too_late.queue.get_nowait()) == (True, None)
    unused = web_app(settings, jobs=JOBS)
    unused.backend.end_streams()
    assert unused.backend.events.is_closed
    await unused.close()


async def test_no_event_after_the_begin_of_a_subscription_is_missed(
    settings: Settings, client: Client, redis: Redis
) -> None:
    hub = EventHub(client, settings, RunCache(client))
    for _ in range(20):
        async with hub.subscribe() as subscriber:
            added = await redis.xadd(keys.EVENTS, {"event": "new"})
            async with asyncio.timeout(60):
                message = await subscriber.queue.get()
            assert message is not None and message.id == added.decode()


async def test_slow_subscribers_are_dropped_and_all_share_one_reader(
    settings: Settings, client: Client, redis: Redis
) -> None:
    hub = EventHub(client, settings, RunCache(client))
    async with hub.subscribe() as slow, hub.subscribe("r") as other:
        for _ in range(_QUEUE + 1):
            hub._send(Message("event", "1-0", {}, ""))
        assert (slow.is_dropped, slow.queue.get_nowait()) == (True, None)
        assert (other.is_dropped, other.queue.empty()) == (False, True)

        async def readers() -> bool:
            clients = await redis.client_list()
            return sum(one["cmd"] == "xread" for one in clients) == 1

        await until(readers)
        assert len(hub._tasks) == 2
    assert hub._tasks == []


async def test_requests_of_many_pages_share_one_read(
    settings: Settings, client: Client, redis: Redis, database: Database
) -> None:
    await client.enqueue(greet.options(delay=60), "x")
    app = web_app(with_web(settings, refresh_seconds=60), jobs=JOBS)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        await http.get("/overview")
        before = (await redis.info("stats"))["total_commands_processed"]
        answers = await asyncio.gather(*(http.get("/overview") for _ in range(200)))
        assert {answer.status_code for answer in answers} == {200}
        assert (await redis.info("stats"))["total_commands_processed"] - before < 50
    await app.close()


async def test_the_last_ids_that_redis_can_have_end_a_replay_and_larger_ones_are_refused(
    settings: Settings, client: Client, redis: Redis, http: httpx.AsyncClient
) -> None:
    last = f"{2**64 - 1}-{2**64 - 1}"
    await redis.xadd(keys.EVENTS, {"event": "last"}, id=last)
    hub = EventHub(client, settings, RunCache(client))
    assert [message.id async for message in hub.replay("0-0", None)] == [last]
    assert [message async for message in hub.replay(last, None)] == []
    assert [event["id"] for event in (await http.get("/events/recent")).json()["items"]] == [last]
    for too_large in (f"{2**64}-0", f"1-{2**64}"):
        response = await http.get("/events", headers={"Last-Event-ID": too_large})
        assert response.status_code == 422, response.text


async def test_short_runs_are_left_out_of_the_events_and_counted(http: httpx.AsyncClient, redis: Redis) -> None:
    begun = datetime.now(UTC) - timedelta(minutes=1)

    async def add(kind: str, seconds: float = 0.0, **fields: str) -> None:
        at = (begun + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")
        await redis.xadd(keys.EVENTS, {"event": kind, "at": at, "worker": "w"} | fields)  # type: ignore[arg-type]

    async def chosen(**query: str) -> tuple[list[str], int]:
        answer = (await http.get("/events/recent", params=query)).json()
        found = [f"{one['event']} {one['fields'].get('run', '')}".strip() for one in answer["items"]]
        return list(reversed(found)), answer["left_out"]

    await add("worker_started")
    ends = (("short", 0.1, "succeeded", {}), ("long", 1.1, "succeeded", {}), ("walk", 0.1, "succeeded", {"rows": "3"}))
    for run, seconds, kind, more in (*ends, ("bad", 0.1, "dead", {"error": "x"})):
        await add("started", run=run, job="j")
        await add(kind, seconds, run=run, job="j", **more)
    await add("ordered", order="pause", by="ada")
    await add("started", 60.0, run="young", job="j")  # just now: it may be a short one
    kept = ["worker_started", "started long", "succeeded long", "started walk", "succeeded walk"]
    kept += ["started bad", "dead bad", "ordered"]
    assert await chosen(brief="false") == (kept, 1)
    assert len((await chosen())[0]) == len(kept) + 3 and (await chosen())[1] == 0
    assert await chosen(event="failures") == (["dead bad"], 0)
    assert await chosen(event="ends", brief="false") == (["succeeded long", "succeeded walk", "dead bad"], 1)
    assert await chosen(event="workers") == (["worker_started"], 0)
    assert (await chosen(event="orders"))[0] == ["ordered"]
    assert (await chosen(job="j", event="started", brief="false"))[0] == ["started long", "started walk", "started bad"]
    page = (await http.get("/page/events")).text
    assert "1 short run, which had no loop" in page and 'id="event-' in page and ">short<" not in page
    for address in ("/page/events?event=succeeded", "/page/events?brief=true&amp;job=j".replace("&amp;", "&")):
        assert ">short<" in (await http.get(address)).text, "they are asked for"


async def test_a_stream_whose_client_reads_nothing_gives_its_place_back(
    api: WebApp, client: Client, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.web.events._UNREAD_SECONDS", 0.05)
    run = await client.enqueue(greet.options(delay=60), name="Ada")
    for path in ("/events", f"/runs/{run.id}/events"):
        scope = {
            "type": "http",
            "method": "GET",
            "path": path,
            "query_string": b"",
            "headers": [(b"host", b"localhost")],
        }
        scope |= {"client": ("127.0.0.1", 4321), "server": ("localhost", 80), "scheme": "http", "http_version": "1.1"}
        places: list[int] = []

        async def receive() -> dict[str, Any]:
            return await asyncio.get_running_loop().create_future()  # the client stays

        async def send(message: Any, places: list[int] = places) -> None:
            if message["type"] == "http.response.body":
                places.append(api.backend.events.count)
                await asyncio.get_running_loop().create_future()  # it takes no bytes

        async with asyncio.timeout(60):
            await api(scope, receive, send)
        assert places == [1]
        assert api.backend.events.count == 0
