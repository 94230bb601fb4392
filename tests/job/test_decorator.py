"""`@job`: its options, its errors, and its few imports."""

from __future__ import annotations

import dataclasses
import inspect
import subprocess
import sys
import typing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import typing_extensions

from worker import JobContext, job
from worker.errors import RegistrationError
from worker.job.decorator import JobKeywords
from worker.job.definition import JobOptions
from worker.throttles import RowsPerSecond, Throttle


def test_job_keywords_are_the_fields_of_job_options() -> None:
    names = {"Throttle": Throttle, "JobContext": JobContext}
    fields = typing.get_type_hints(JobOptions, localns=names)
    assert typing.get_type_hints(JobKeywords, localns=names) == fields
    described = inspect.cleandoc(JobOptions.__doc__ or "")
    assert [name for name in fields if f"\n    {name}: " not in described] == []


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


async def slow_backoff(attempt: int) -> float:
    """Return seconds, too late."""
    return 1.0


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
        ({"timezone": None}, "timezone=None: write e.g. 'Europe/London'"),
        ({"cron": 5}, "cron=5: give a cron expression or a list of them"),
        ({"backoff": slow_backoff}, "backoff=.*: give a plain function: it is not awaited"),
        ({"do_not_retry": KeyError}, "do_not_retry=.*: give a list of classes of errors"),
        ({"do_not_retry": ["KeyError"]}, "do_not_retry=.*: give a list of classes of errors"),
        ({"do_not_retry": iter([KeyError])}, "do_not_retry=.*: give a list of classes of errors"),
        ({"throttle": RowsPerSecond(5)}, "throttle=.*: give a list of throttles"),
        ({"throttle": [5]}, "throttle=.*: give a list of throttles"),
        ({"rate": 5}, 'rate=5: write e.g. "100/minute"'),
        ({"unique": 5}, "unique=5: give True, or names of arguments"),
        ({"once": 1}, "once=1: give True or False"),
        ({"rate_key": "shop"}, "rate_key= has no effect without rate="),
        ({"concurrency_key": "shop"}, "concurrency_key= has no effect without concurrency="),
        ({"unique_for": 5}, "unique_for= has no effect without unique="),
        ({"name": "*"}, "it has no name that a command can take"),
        ({"name": "a\nb"}, "it has no name that a command can take"),
        ({"name": "\ud800"}, "it has no name that a command can take"),
        ({"name": 5}, "it has no name that a command can take"),
    ],
)
def test_job_refuses_an_option_that_is_wrong(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RegistrationError, match=message):

        @job(**options)
        async def wrong(ctx: JobContext) -> None:
            """Do nothing."""


NUMBERS = {
    "timeout": [0, -1, float("nan"), "5", True, timedelta(seconds=5)],
    "stall_timeout": [0, -1, float("nan"), "5", True],
    "grace_period": [-1, float("nan"), float("inf"), "5", True],
    "result_ttl": [-1, float("nan"), float("inf"), 1e300, "5", True],
    "unique_for": [0, -1, float("nan"), float("inf"), "5", True],
    "yield_after": [-1, float("nan"), "5", True],
    "max_attempts": [0, -1, 1.5, "5", True],
    "concurrency": [-1, 1.5, "5", True, None],
    "backoff": [-1, float("nan"), "5", True],
}


@pytest.mark.parametrize(("option", "value"), [(option, value) for option, all_ in NUMBERS.items() for value in all_])
def test_job_refuses_a_number_that_a_run_would_fail_at(option: str, value: Any) -> None:
    more: dict[str, Any] = {"unique": True} if option == "unique_for" else {}
    with pytest.raises(RegistrationError, match=f"job wrong: {option}="):

        @job(**{option: value, **more})
        async def wrong(ctx: JobContext) -> None:
            """Do nothing."""


def test_job_refuses_a_job_and_a_lambda_without_a_name() -> None:
    @job
    async def made(ctx: JobContext) -> None:
        """Do nothing."""

    with pytest.raises(RegistrationError, match=r"^job made: it is a job already: remove the second @job$"):
        job(made)  # type: ignore[call-overload]
    with pytest.raises(RegistrationError, match="a lambda as a job needs a name"):
        job(lambda ctx: None)


@pytest.mark.parametrize("annotation", ["in t[", "int[5]", "1 / 0"])
def test_job_names_itself_where_an_annotation_cannot_be_read(annotation: str) -> None:
    async def work(ctx: Any, days: int) -> None:
        """Do nothing."""

    work.__annotations__["days"] = annotation
    with pytest.raises(RegistrationError, match=r"^job work: its annotations cannot be read: "):
        job(work)


def test_job_leaves_a_name_that_its_module_has_not_yet_to_a_later_check() -> None:
    async def work(ctx: Any, days: int) -> None:
        """Do nothing."""

    work.__annotations__["days"] = "typing.LaterInACircularImport"
    made = job(work)
    with pytest.raises(RegistrationError, match=r"job work: .*LaterInACircularImport.*; import the types"):
        made.codec.check()


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


Bound = typing.TypeVar("Bound", bound=JobContext)
Number = typing.NewType("Number", int)
Renamed = typing.NewType("Renamed", JobContext)
FITTING = [
    Named,
    OlderNamed,
    object,
    Any,
    JobContext,
    JobContext | None,
    Bound,
    Renamed,
    typing.Annotated[JobContext, 1],
]
OTHER = [Implemented, int, dict[str, Any], typing.Literal[1, 2], int | None, typing.Optional[int], Number]  # noqa: UP045


@pytest.mark.parametrize("context", FITTING)
def test_job_takes_a_context_by_any_type_that_fits_it(context: Any) -> None:
    def work(ctx: Any) -> None:
        """Do nothing."""

    work.__annotations__["ctx"] = context
    assert job(run_in="thread")(work).name == "work"


@pytest.mark.parametrize("context", [*OTHER, typing.Annotated[int, 1]])
def test_job_refuses_a_first_parameter_that_is_not_the_context(context: Any) -> None:
    def work(ctx: Any) -> None:
        """Do nothing."""

    work.__annotations__["ctx"] = context
    with pytest.raises(RegistrationError, match="its first parameter has to be the JobContext"):
        job(run_in="thread")(work)


def test_job_refuses_a_first_parameter_with_a_default() -> None:
    def work(days=365):  # type: ignore[no-untyped-def]
        """Do nothing."""

    with pytest.raises(RegistrationError, match="has to be the JobContext, and days has the default 365"):
        job(work)


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
