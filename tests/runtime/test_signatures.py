"""Runs whose arguments were made for another signature of their job."""

from __future__ import annotations

import inspect
import json

import pytest

from tests.runtime.gated_jobs import (
    fresh,  # noqa: F401  (used by each test)
    is_logged,
)
from tests.support.waiting import until
from tests.support.workers import working
from worker import Client, Job, JobContext, JobFailed, Settings, job
from worker.queue import keys

pytestmark = pytest.mark.usefixtures("database")


def renamed(**annotations: type) -> Job[..., int]:
    """Return a job of one name, whose arguments are those of some version of it."""

    async def function(ctx: JobContext, **arguments: int) -> int:
        """Return the number of arguments."""
        return len(arguments)

    parameters = [inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    parameters += [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in annotations]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    function.__annotations__ = dict(annotations)
    return job(name="versioned")(function)


async def test_arguments_of_another_signature_are_kept_for_a_worker_that_has_it(
    fast: Settings, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    old, new = renamed(days=int), renamed(days=int, limit=int)
    run = await client.enqueue(new, days=1, limit=2)
    async with working(fast, old):
        await until(lambda: is_logged(caplog, "kept in the queue for a worker that has the signature of its client"))
    assert await run.status() == "deferred"
    assert await client.redis.get(keys.RETRY + run.id) is None  # it costs no attempt
    await client.redis.zadd("arq:queue", {run.id: 0})
    async with working(fast, new):
        assert await run.result(timeout=120) == 2


async def test_arguments_that_fit_are_taken_whatever_the_signature_was(fast: Settings, client: Client) -> None:
    run = await client.enqueue(renamed(days=int), days=1)
    async with working(fast, renamed(days=str | int)):  # type: ignore[arg-type]
        assert await run.result(timeout=120) == 1


async def test_arguments_that_do_not_fit_their_own_signature_are_dead(fast: Settings, client: Client) -> None:
    mine = renamed(days=int)
    raw = {"f": "versioned", "k": {"days": "many"}, "v": mine.version}
    await client.store.enqueue("bent", json.dumps(raw), queue="arq:queue")
    async with working(fast, mine):
        with pytest.raises(JobFailed, match="days: input should be a valid integer"):
            await client.run("bent").result(timeout=120)
