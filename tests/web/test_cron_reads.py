"""The cron lines of the API and the page: whether the run of the last due time succeeded, and how late it began."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from sqlalchemy import event, text

from tests.support.workers import with_web
from tests.web.conftest import connect
from tests.web.jobs import nightly
from worker import JobContext, job
from worker.db.engine import Database
from worker.ledger import Ledger, RunSpec
from worker.queue import keys
from worker.queue.client import Client
from worker.queue.cron_lines import firing_id
from worker.settings import Settings
from worker.web import WebApp, web_app
from worker.web.job_views import CronView
from worker.web.page.sentences import describe_last_run, describe_lateness, describe_newest_run

_LINE = str(nightly.schedule[0])
_DUE = datetime(2026, 11, 20, 3, tzinfo=UTC)


async def read_line(http: httpx.AsyncClient) -> CronView:
    """Return the only cron line."""
    [line] = (await http.get("/cron")).json()["items"]
    return CronView.model_validate(line, strict=False)


async def fire(database: Database, due: datetime) -> str:
    """Note a due time as a worker does. Return the id of its run."""
    await Ledger(database).start_cron_line("nightly", _LINE, due)
    return firing_id("nightly", _LINE, due, await Ledger(database).read_application())


async def tell(redis: Redis, run_id: str, kind: str, after: timedelta, **fields: str) -> None:
    """Add an event to the stream, that long after the due time."""
    entry: dict[Any, Any] = {"event": kind, "run": run_id, "job": "nightly", "at": (_DUE + after).isoformat()}
    await redis.xadd(keys.EVENTS, entry | fields)


async def test_a_line_that_was_not_due_yet_says_since_when_it_is_known(
    api: WebApp, http: httpx.AsyncClient, database: Database
) -> None:
    assert describe_last_run(await read_line(http)) == ["no worker has seen this line yet"]
    api.backend.reads.forget()
    await fire(database, _DUE + timedelta(hours=5, microseconds=7))
    line = await read_line(http)
    assert (line.last_at, line.last_state, line.seen_at) == (None, None, _DUE + timedelta(hours=5, microseconds=7))
    assert describe_last_run(line) == [
        "this line is known only since 20 Nov 2026 08:00 UTC",
    ]


async def test_the_newest_run_of_the_job_is_known_whatever_has_enqueued_it(
    api: WebApp, http: httpx.AsyncClient, database: Database, redis: Redis
) -> None:
    due = await fire(database, _DUE)
    await tell(redis, due, "started", timedelta(seconds=1))
    await tell(redis, due, "succeeded", timedelta(seconds=4))
    line = await read_line(http)
    assert line.newest_run is not None and line.newest_run.id == due and describe_newest_run(line) == ""
    order = {"order": "cron_run", "targets": '["nightly"]', "details": '{"run": "x"}', "by": "web:ada"}
    await tell(redis, "x", "started", timedelta(hours=1))
    await tell(redis, "hand-1:5", "started", timedelta(hours=1))  # a helper is a part of another run
    await tell(redis, "x", "retry", timedelta(hours=1, seconds=1))
    await tell(redis, "x", "started", timedelta(hours=1, seconds=2))
    await tell(redis, "x", "succeeded", timedelta(hours=1, seconds=2.4))
    assert describe_newest_run(await read_line(http)).startswith("enqueued by code, 20 Nov 2026 04:00 UTC, succeeded")
    await tell(redis, "", "ordered", timedelta(hours=1), **order)  # recorded behind a short run, shown at once
    await tell(redis, "", "ordered", timedelta(hours=2), order="cron_run", details="[[")
    line = await read_line(http)
    assert (line.last_run, line.newest_by_hand) == (due, True)
    assert describe_newest_run(line) == "by hand, 20 Nov 2026 04:00 UTC, succeeded, 2.4 s"
    for name, origin in (("cron:nightly:1", "by cron"), ("y", "enqueued by code")):
        await tell(redis, name, "started", timedelta(hours=3))
        assert describe_newest_run(await read_line(http)) == f"{origin}, 20 Nov 2026 06:00 UTC, running"


async def test_a_run_that_began_late_says_how_late_also_after_its_result_has_expired(
    http: httpx.AsyncClient, database: Database, redis: Redis
) -> None:
    run_id = await fire(database, _DUE)
    begin = timedelta(hours=5, minutes=40)
    await tell(redis, run_id, "started", begin)
    await tell(redis, run_id, "retry", begin + timedelta(seconds=5))
    await tell(redis, run_id, "started", begin + timedelta(seconds=9))
    await tell(redis, run_id, "succeeded", begin + timedelta(minutes=1), rows="1200")
    line = await read_line(http)
    assert (line.last_run, line.last_state, line.late_seconds) == (run_id, "succeeded", begin.total_seconds())
    assert describe_last_run(line) == [
        *("began 20 Nov 2026 08:40 UTC, 5 h 40 min late", "ended 20 Nov 2026 08:41 UTC", "1,200 rows"),
    ]
    assert describe_lateness(line) == "5 h 40 min late"


async def test_a_run_of_the_ledger_is_known_without_events(
    http: httpx.AsyncClient, client: Client, database: Database, settings: Settings
) -> None:
    run_id = await fire(database, _DUE)
    values = {"id": run_id, "at": _DUE + timedelta(seconds=30), "end": _DUE + timedelta(minutes=9)}
    async with database.transaction() as session:
        await session.execute(
            text(
                "INSERT INTO worker.run (id, job, queue, payload, arguments, state, fence, attempt, batches_before, "
                "created_at, finished_at) VALUES (:id, 'nightly', 'arq:queue', '{}', '{}', 'dead', 1, 1, 0, :at, :end)"
            ),
            values,
        )
    line = await read_line(http)
    assert (line.last_state, line.last_began_at, line.last_finished_at) == ("dead", values["at"], values["end"])
    assert (line.late_seconds, describe_lateness(line)) == (30.0, "")


@job(cron="0 4 * * *")
async def report(ctx: JobContext) -> None:
    """Run at night, without arguments."""


async def test_runs_of_many_lines_are_read_by_one_statement_and_only_arguments_offer_others(
    settings: Settings, database: Database, client: Client
) -> None:
    app = web_app(with_web(settings, refresh_seconds=0.001), jobs=(nightly, report))
    statements: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    try:
        ledger = Ledger(database)
        for one in (nightly, report):
            line = str(one.schedule[0])
            await ledger.start_cron_line(one.name, line, _DUE)
            run_id = firing_id(one.name, line, _DUE, await ledger.read_application())
            run = await ledger.claim(RunSpec(run_id, one.name, "arq:queue", "{}", "[]"))
            await run.finish("succeeded")
            await run.close()
        event.listen(app.backend.database.engine.sync_engine, "before_cursor_execute", note)
        async with connect(app) as http:
            lines = (await http.get("/cron")).json()["items"]
            page = (await http.get("/page/cron")).text
    finally:
        await app.close()
    assert [(line["job"], line["last_state"]) for line in lines] == [("nightly", "succeeded"), ("report", "succeeded")]
    assert len([one for one in statements if "LEFT JOIN worker.step" in one]) == 1
    assert re.findall(r'href="([^"]*)#enqueue"', page) == ["/page/jobs/nightly"]


@pytest.mark.parametrize("is_enqueued", [True, False], ids=["waits", "skipped"])
async def test_a_run_that_has_not_begun_says_so(
    http: httpx.AsyncClient, client: Client, database: Database, is_enqueued: bool
) -> None:
    due = (datetime.now(UTC) - timedelta(hours=3)).replace(microsecond=0)
    run_id = await fire(database, due)
    if is_enqueued:
        await client.enqueue(nightly.options(id=run_id))
    line = await read_line(http)
    if is_enqueued:
        assert (line.last_state, describe_last_run(line)) == ("waiting", ["not begun, 3 h late"])
    else:
        assert line.late_seconds is None
        assert describe_last_run(line) == ["its run was skipped or deleted, or ended too long ago"]
