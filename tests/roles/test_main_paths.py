"""Least privilege: each kind of process does all that it is for, under its role and its user alone."""

from __future__ import annotations

import asyncio
import fnmatch
import os
import re
from importlib.resources import files
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from demo.page_server import serving
from tests.roles import jobs
from tests.roles.conftest import Limited
from tests.roles.redis_commands import watching
from tests.support.authors import count_seen, fill_authors
from tests.support.command_line import run_here
from tests.support.main_paths import COMMANDS as CLI_COMMANDS
from tests.support.scrapes import with_metrics
from tests.support.waiting import until
from tests.support.workers import with_web, with_worker, working
from tests.web.conftest import connect
from tests.web.test_events import read_messages
from worker import Client, JobCancelled, SyncClient
from worker.cli.top.reader import Reader
from worker.db.engine import Database
from worker.queue.acl import COMMANDS, USER_KINDS, key_patterns
from worker.queue.scripts import script
from worker.runtime.worker import Worker
from worker.settings import Settings
from worker.web import web_app
from worker.web.page.views import VIEWS
from worker.web.table import OPERATIONS

ROWS = 60
#: Commands that are needed elsewhere.
ELSEWHERE = {"role": "a connection that Sentinel has named", "ping": "a listener that has heard nothing for 10 s"}
#: Refusals that a process can do without: `worker doctor` reads settings of the server if it may.
HARMLESS = {"config|get"}


async def run_jobs(client: Client, admin: Redis, worker: Worker) -> None:
    """Run each kind of job once."""
    for walk in (jobs.walk, jobs.sweep, jobs.stream, jobs.skip_locked, jobs.walk_together):
        assert await (await client.enqueue(walk)).result(timeout=120) == ROWS, walk.name
    assert await (await client.enqueue(jobs.quarantine.options(id="quarantine"))).result(timeout=120) == ROWS - 1
    assert await (await client.enqueue(jobs.steps)).result(timeout=120) == 42
    await (await client.enqueue(jobs.retries)).result(timeout=120)
    await (await client.enqueue(jobs.enqueues)).result(timeout=120)
    assert await client.run("from-a-job").result(timeout=120) == 1
    [fired] = await worker.scheduler.look(now=worker.scheduler._entries[0].next_due)
    await admin.zadd("arq:queue", {fired: 0})  # now, and not when the next minute begins
    await client.run(fired).result(timeout=120)


async def enqueue_everything(client: Client, name: str) -> None:
    """Enqueue in all ways, and wait for the results."""
    chain = await client.enqueue(jobs.plain.options(then=jobs.limited.call(), priority=5), value=3)
    assert await chain.result(timeout=120) == 3
    await chain.next_runs[0].result(timeout=120)
    group = await client.group([jobs.limited.call(), jobs.limited.call()], then=jobs.plain.call())
    assert group.callback is not None
    assert await group.callback.result(timeout=120) == 1
    await client.enqueue(jobs.unique.options(delay=600))
    assert not (await client.enqueue(jobs.unique)).is_new
    for priority in (1, 2):
        later = jobs.fair.options(delay=600, id=f"{name}-replaced", replace=True, priority=priority)
        await client.enqueue(later, tenant="west")
    for run in await client.enqueue_many(jobs.fair.options(priority=2), [{"tenant": "north"}, {"tenant": "south"}]):
        await run.result(timeout=120)
    for run in await client.enqueue_many(jobs.limited, [{}] * 3):
        await run.result(timeout=120)
    failed = await client.enqueue(jobs.fails.options(id=f"{name}-failed"))
    assert [report.state async for report in failed.progress()][-1] == "dead"


def enqueue_blocking(settings: Settings) -> None:
    """Enqueue by the client without an event loop."""
    with SyncClient(settings) as client:
        assert client.enqueue(jobs.plain, value=5).result(timeout=120) == 5


async def steer(http: httpx.AsyncClient, client: Client, admin: Redis) -> None:
    """Give each order."""

    async def order(path: str, status: int = 200, key: str = "", **body: Any) -> None:
        response = await http.post(path, json=body, headers={"Idempotency-Key": key} if key else {})
        assert response.status_code == status, response.text

    assert await client.store.known(["nothing"], "arq:queue") == [False]  # as `worker pause` asks
    await order("/orders/pause", targets=["plain"])
    for number in (1_000_000, None):
        await order("/orders/pace", targets=["walk"], rows_per_second=number)
        await order("/orders/limit", name="limited", concurrency=number, rate_per_second=number)
    parked = await client.enqueue(jobs.plain.options(id="parked"))
    await until(lambda: admin.hexists("worker:parked:plain", "parked"))
    await order("/orders/resume", targets=["plain"])
    assert await parked.result(timeout=120) == 1
    await client.enqueue(jobs.waits.options(id="cancelled"))
    await until(lambda: admin.exists("arq:in-progress:cancelled"))
    await order("/orders/cancel", runs=["cancelled"])
    with pytest.raises(JobCancelled):
        await client.run("cancelled").result(timeout=120)
    assert await (await client.enqueue(jobs.plain.options(delay=600))).cancel()
    await order("/runs", 201, key="a", job="plain", arguments={})
    jobs.GATE.set()
    await order("/dead-letters/retry", runs=["client-failed"])
    assert await client.run("client-failed").result(timeout=120) is None
    await order("/dead-letters/delete", runs=["operator-failed"])
    await order("/quarantine/retry", runs=["quarantine"])
    await admin.sadd("worker:paused", "by-hand")
    await until(lambda: admin.hexists("worker:ordered", "pause by-hand"))


async def look(settings: Settings, admin: Redis) -> None:
    """Read each page, the streams, and what the command line shows."""
    settings = with_web(settings, port=0)
    app, values = web_app(settings, jobs=jobs.JOBS), {"run_id": "quarantine", "job": "walk", "row_id": "1"}

    async def reads_live() -> bool:
        return any(one["cmd"] == "xread" for one in await admin.client_list())

    async with (
        serving(settings, app) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as http,
        Client(settings) as client,
    ):
        for operation in OPERATIONS:
            if operation.role == "read" and operation.content == "json":
                path = re.sub(r"\{(\w+)\}", lambda found: values[found[1]], operation.path)
                response = await http.get(path)
                assert response.status_code == (404 if path.startswith("/dead-letters/") else 200), response.text
        for view in VIEWS:
            path = re.sub(r"\{(\w+)\}", lambda found: values[found[1]], view.path)
            assert (await http.get(path)).status_code == 200, path
        page = (await http.get("/dead-letters?limit=1")).json()
        assert (await http.get(f"/dead-letters?limit=1&cursor={page['next_cursor']}")).json()["items"]
        async with http.stream("GET", "/events", headers={"Last-Event-ID": "0-1"}) as response:
            messages = read_messages(response)
            await anext(messages)
            await until(reads_live)
            await admin.xadd("worker:events", {"event": "live"})
            while (await anext(messages))[2].get("event") != "live":
                pass
        assert (await client.status()).workers
        assert (await Reader(client, settings).read()).workers
        await client.runs()
        await client.limits()
        assert await client.run("quarantine").result(timeout=120) == ROWS - 1
    await app.close()


async def drain_and_rescue(settings: Settings, client: Client, admin: Redis) -> None:
    """Drain a worker in the middle of a walk, lose the run in Redis, and let the next worker rescue it."""
    jobs.GATE.clear()
    async with working(settings, *jobs.JOBS) as worker:
        run = await client.enqueue(jobs.pauses.options(id="drained"))
        await until(lambda: admin.hexists("worker:run:drained", "last_key"))
        worker.drain()
        jobs.GATE.set()
    assert await admin.delete("arq:job:drained") == await admin.zrem("arq:queue", "drained") == 1
    await client.enqueue_by_name("known_to_no_worker")
    async with working(settings, *jobs.JOBS):
        assert await run.result(timeout=120) == ROWS


async def test_each_process_does_its_work_with_its_rights_and_needs_each_of_them(
    limited: Limited, database: Database
) -> None:
    await fill_authors(database, ROWS)
    admin, named = (
        limited.admin,
        with_metrics(with_worker(limited.worker, name="roles", lease_seconds=1.0, rescue_interval_seconds=0.2)),
    )
    async with watching(admin) as watched:
        async with (
            Client(limited.client) as client,
            Client(limited.operator) as operator,
            working(named, *jobs.JOBS) as worker,
        ):
            for each, name in ((client, "client"), (operator, "operator")):
                await admin.script_flush()  # each of them loads the scripts that it needs
                await enqueue_everything(each, name)
            await asyncio.to_thread(enqueue_blocking, limited.client)
            await run_jobs(operator, admin, worker)
            await look(limited.reader, admin)
            await look(limited.operator, admin)
            app = web_app(limited.operator, jobs=jobs.JOBS)
            async with connect(app) as http:
                await steer(http, operator, admin)
            await app.close()
        async with Client(limited.operator) as operator:
            await drain_and_rescue(named, operator, admin)
    assert await count_seen(database) == {2: ROWS}
    assert {entry["object"] for entry in await admin.acl_log()} <= HARMLESS
    for kind in USER_KINDS:
        spare = set(COMMANDS[kind].split()) - watched.of[f"lh-{kind}"] - ELSEWHERE.keys()
        assert not spare, f"no process of the kind {kind} needs {sorted(spare)}"
        for pattern in key_patterns(kind, ["arq:queue"]):  # type: ignore[arg-type]
            assert fnmatch.filter(watched.arguments[f"lh-{kind}"], pattern.partition("~")[2]), f"{kind}: {pattern}"


def script_commands(name: str) -> set[str]:
    """Return the commands that a script calls, those of the scripts that it includes as well."""
    return {found.lower() for found in re.findall(r"(?:redis\.p?call|try)\('([A-Z]+)'", script(name))}


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("worker", [each.name.removesuffix(".lua") for each in files("worker.queue.scripts").iterdir()]),
        ("operator", ["enqueue", "enqueue_many", "cancel", "retry"]),
        ("client", ["enqueue", "enqueue_many"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_user_may_call_each_command_of_its_scripts_on_rare_paths_as_well(kind: str, names: list[str]) -> None:
    needed = set().union(*(script_commands(name) for name in names if not name.startswith("__")))
    # Of `fair`, which others include, only a claim calls these; a claim is a worker's.
    unused = set() if kind == "worker" else {"zrangebyscore", "zremrangebyscore", "hget"}
    assert needed - unused <= set(COMMANDS[kind].split()), sorted(needed - unused - set(COMMANDS[kind].split()))


@pytest.mark.long
@pytest.mark.parametrize("kind", ["operator", "reader"])
async def test_the_command_line_works_under_its_user(limited: Limited, kind: str) -> None:
    settings: Settings = getattr(limited, kind)
    reads = ("status", "runs", "jobs", "cron", "top", "dead", "keys", "doctor")
    async with Client(limited.operator) as client, working(limited.worker, *jobs.JOBS):
        await (await client.enqueue(jobs.fails.options(id="failed"))).progress().__anext__()
        await until(lambda: limited.admin.hexists("worker:dead", "failed"))
        for line in CLI_COMMANDS:
            if (line.split()[0] in reads and "show" not in line) or (kind == "operator" and "the-walk" not in line):
                ran = await asyncio.to_thread(run_here, line.split(), "", environment_of(settings))
                assert ran.returncode == 0, f"{line}: {ran}"
    assert {entry["object"] for entry in await limited.admin.acl_log()} <= HARMLESS


def environment_of(settings: Settings) -> dict[str, str]:
    """Return the environment of a command on these servers."""
    return os.environ | {
        "DATABASE_URL": settings.database.url,
        "REDIS_URL": settings.redis.url,
        "LONGHAUL_WORKER__PACKAGES": '["tests.faults.jobs"]',
    }
