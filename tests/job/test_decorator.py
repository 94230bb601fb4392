"""`@job`: its options, its errors, and its few imports."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
import typing_extensions

from worker import JobContext, job
from worker.errors import RegistrationError
from worker.job.decorator import JobKeywords
from worker.job.definition import JobOptions
from worker.throttles import Throttle


def test_job_keywords_are_the_fields_of_job_options() -> None:
    names = {"Throttle": Throttle, "JobContext": JobContext}
    fields = typing.get_type_hints(JobOptions, localns=names)
    assert typing.get_type_hints(JobKeywords, localns=names) == fields
    described = JobOptions.__doc__ or ""
    assert [name for name in fields if f"        {name}: " not in described] == []


def test_job_keeps_its_options_as_they_were_given() -> None:
    @job(name="other", cron=["0 3 * * *", "0 4 * * *"], do_not_retry=[KeyError], concurrency=2, priority=3)
    async def made(ctx: JobContext) -> None:
        """Do nothing."""

    given = JobOptions(
        name="other", cron=["0 3 * * *", "0 4 * * *"], do_not_retry=[KeyError], concurrency=2, priority=3
    )
    assert made.rules == given
    assert (made.name, [line.expression for line in made.schedule]) == ("other", ["0 3 * * *", "0 4 * * *"])
    assert made.do_not_retry == (KeyError,) and made.limits is not None and made.limits.concurrency == 2
    assert (made.priority, made.options(priority=9).priority) == (3, 9)
    defaults = dataclasses.asdict(JobOptions())
    assert defaults["max_attempts"] is None and defaults["on_stall"] == "log"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concurency": 1}, "@job has no option 'concurency'; did you mean concurrency"),
        ({"zzz": 1}, "@job has no option 'zzz'; it has name, cron"),
        ({"run_in": "cellar"}, 'run_in=\'cellar\': give "loop", "thread" or "process"'),
        ({"run_in": "thread"}, 'run_in="thread" is for plain functions, and .* is an `async def`'),
        ({"on_stall": "report"}, "on_stall='report': give 'log' or 'retry'"),
        ({"unique_while": "ever"}, "unique_while='ever': give 'active' or 'waiting'"),
        ({"concurrency": -1}, "concurrency=-1: give at least 1"),
        ({"priority": 10}, "priority=10: give a whole number from 0 to 9"),
    ],
)
def test_job_refuses_an_option_that_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RegistrationError, match=message):

        @job(**options)
        async def wrong(ctx: JobContext) -> None:
            """Do nothing."""


def test_job_refuses_a_plain_function_on_the_event_loop() -> None:
    with pytest.raises(RegistrationError, match="would block the event loop of all jobs"):

        @job(run_in="loop")
        def wrong(ctx: JobContext) -> None:
            """Do nothing."""


class Named(typing.Protocol):
    """A protocol that a context fits."""

    run_id: str


class OlderNamed(typing_extensions.Protocol):
    """The same, for older versions of Python."""

    run_id: str


class Implemented(Named):
    """A class of its own, which is not the context."""


@pytest.mark.parametrize("context", [Named, OlderNamed, object, Any, JobContext])
def test_job_takes_a_context_by_any_type_that_fits_it(context: Any) -> None:
    def work(ctx: Any) -> None:
        """Do nothing."""

    work.__annotations__["ctx"] = context
    assert job(run_in="thread")(work).name == "work"


@pytest.mark.parametrize("context", [Implemented, int, dict[str, Any]])
def test_job_refuses_a_first_parameter_that_is_not_the_context(context: Any) -> None:
    def work(ctx: Any) -> None:
        """Do nothing."""

    work.__annotations__["ctx"] = context
    with pytest.raises(RegistrationError, match="its first parameter has to be the JobContext"):
        job(run_in="thread")(work)


LIGHT = """
import sys, types
package = types.ModuleType("worker")
package.__path__ = [sys.argv[1]]
sys.modules["worker"] = package  # not what `import worker` loads, only the rooms that the job modules need
import worker.job.decorator, worker.job.registry, worker.job.middleware, worker.job.propagation
print(sorted(name for name in sys.modules if name.split(".")[0] in ("sqlalchemy", "asyncpg", "alembic", "arq", "redis")
             or name.startswith(("worker.batch", "worker.attempt", "worker.db", "worker.ledger", "worker.queue"))))
"""


def test_job_modules_load_no_server_library_and_no_room_of_the_worker() -> None:
    folder = Path(__file__).parents[2] / "worker"
    ran = subprocess.run([sys.executable, "-c", LIGHT, str(folder)], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
