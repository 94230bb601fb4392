"""Failed runs in Sentry: what an event says and does not say, and how often it is sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import sentry_sdk
from redis.asyncio import Redis
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport
from sqlalchemy import select

from tests.models import Author
from tests.support.authors import fill_authors
from worker import Client, Job, JobContext, JobFailed, Settings, job
from worker.db.engine import Database
from worker.launch import running
from worker.observe.sentry import SentryReporter

pytestmark = pytest.mark.usefixtures("redis")


class Events(Transport):
    """A transport that keeps what would be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[Any] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        """Keep the events of an envelope."""
        self.sent += [item.payload.json for item in envelope.items if item.type == "event"]


@pytest.fixture
def events() -> Iterator[list[Any]]:
    """The events of this test."""
    transport = Events()
    with sentry_sdk.isolation_scope() as scope:
        before = scope.client
        client = sentry_sdk.Client(dsn="http://key@localhost/1", transport=transport, auto_enabling_integrations=False)
        sentry_sdk.get_global_scope().set_client(client)
        yield transport.sent
        sentry_sdk.get_global_scope().set_client(before)


def of_runs(events: list[Any]) -> list[Any]:
    """Return the events about runs, without those of the worker, such as of a loop that a busy machine has blocked."""
    return [one for one in events if "longhaul.run" in one.get("tags", {}) or one.get("logger") == "longhaul.jobs"]


@job(max_attempts=2)
async def walk(ctx: JobContext, secret: str) -> None:
    """Fail at one row, until it is alone in its batch."""
    async for batch in ctx.chunks(select(Author.id), size=2, name="authors"):
        logging.getLogger("shop").warning("breadcrumb of %s", ctx.run_id)
        if 3 in list(batch):
            raise RuntimeError("broken row")


@job(max_attempts=2)
async def recover(ctx: JobContext) -> None:
    """Fail once."""
    if ctx.attempt == 1:
        raise ValueError("once")


@job(max_attempts=1, timeout=0.05)
async def hang(ctx: JobContext) -> None:
    """Exceed the timeout."""
    await asyncio.sleep(60)


async def run_one(
    settings: Settings, client: Client, reporter: SentryReporter, one: Job[..., Any], **given: Any
) -> None:
    async with running(settings, jobs=[one], middleware=[reporter]):
        run = await client.enqueue(one.options(id=one.name), **given)
        with contextlib.suppress(JobFailed):
            await run.result(timeout=60)


async def test_a_dead_run_is_one_event_with_its_run_batch_and_row_and_no_arguments(
    fast: Settings, client: Client, database: Database, events: list[Any]
) -> None:
    await fill_authors(database, 6)
    await run_one(fast, client, SentryReporter(), walk, secret="hunter2-argument")
    [event] = of_runs(events)
    assert event["level"] == "error" and event["transaction"] == "walk"
    assert event["tags"] == {
        "longhaul.run": "walk",
        "longhaul.job": "walk",
        "longhaul.attempt": "2",
        "longhaul.step": "authors",
    }
    known = event["contexts"]["longhaul"]
    assert (known["run"], known["job"], known["step"], known["row_key"]) == ("walk", "walk", "authors", "[3]")
    assert known["batch"] == "step 'authors', batch 2, key 3"
    value = event["exception"]["values"][-1]
    assert (value["type"], value["value"]) == ("RuntimeError", "broken row")
    assert value["mechanism"] == {"type": "longhaul", "handled": False}
    assert "hunter2-argument" not in json.dumps(event)
    assert "breadcrumb of walk" in [one["message"] for one in event["breadcrumbs"]["values"]]


async def test_retries_are_reported_only_if_asked_for(
    fast: Settings, client: Client, database: Database, events: list[Any]
) -> None:
    await run_one(fast, client, SentryReporter(), recover)
    assert of_runs(events) == []
    await client.redis.flushall()
    await run_one(fast, client, SentryReporter(when="attempt"), recover)
    [event] = of_runs(events)
    assert (event["level"], event["exception"]["values"][-1]["value"]) == ("warning", "once")


async def test_arguments_and_variables_are_sent_if_asked_for(
    fast: Settings, client: Client, database: Database, events: list[Any]
) -> None:
    await fill_authors(database, 6)
    await run_one(fast, client, SentryReporter(arguments=True), walk, secret="hunter2-argument")
    [event] = of_runs(events)
    assert "hunter2-argument" in event["contexts"]["longhaul arguments"]["json"]
    assert any("vars" in frame for frame in event["exception"]["values"][-1]["stacktrace"]["frames"])


async def test_a_run_that_dies_by_its_timeout_is_reported(
    fast: Settings, client: Client, database: Database, events: list[Any]
) -> None:
    await run_one(fast, client, SentryReporter(), hang)
    [event] = of_runs(events)
    assert event["message"].startswith("hang dead: ") and event["tags"]["longhaul.run"] == "hang"


async def test_the_settings_name_it_and_a_client_that_loads_it_has_no_loops(fast: Settings, redis: Redis) -> None:
    code = (
        "import sys\nfrom worker import Client, load_settings\n"
        "name = 'worker.observe.sentry:SentryReporter'\n"
        "client = Client(load_settings(environment={}, overrides={'worker': {'middleware': [name]}}))\n"
        "assert 'worker.observe.sentry' in sys.modules and 'worker.batch' not in sys.modules\n"
        "assert 'sqlalchemy' not in sys.modules"
    )
    ran = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
