"""`@job`: makes a function a job, after checking that it can work as one."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import sys
import types
import typing
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Protocol, TypedDict, TypeVar, Unpack, overload

from worker.errors import RegistrationError
from worker.job.arguments import JobCodec, UndefinedType
from worker.job.definition import (
    Backoff,
    Job,
    JobOptions,
    OnStall,
    OnStatementChange,
    RunIn,
    describe_place,
)
from worker.job.limits import Fair, Limits, Unique, UniqueWhile
from worker.job.option_checks import check_job_options, check_verify
from worker.job.schedule import make_schedule

if TYPE_CHECKING:
    from worker.attempt.context import JobContext
    from worker.batch.throttle import Throttle

P = ParamSpec("P")
R = TypeVar("R")

_TYPING_MODULES = ("typing", "typing_extensions")


class JobKeywords(TypedDict, total=False):
    """The keywords of `@job(...)`: the fields of `JobOptions`, for the type checker."""

    name: str | None
    cron: str | Sequence[str] | None
    timezone: str
    run_in: RunIn | None
    timeout: float | None
    grace_period: float | None
    max_attempts: int | None
    do_not_retry: Iterable[type[BaseException]]
    backoff: Backoff | None
    result_ttl: float | None
    stall_timeout: float | None
    yield_after: float | None
    on_stall: OnStall
    on_statement_change: OnStatementChange
    overlap: bool
    throttle: Iterable[Throttle]
    concurrency: int
    concurrency_key: str | None
    rate: str | None
    rate_key: str | None
    unique: bool | str | Sequence[str]
    unique_for: float | None
    unique_while: UniqueWhile
    fair_by: str | None
    fair_weights: Mapping[str, float] | None
    verify: Any
    once: bool
    priority: int


class JobDecorator(Protocol):
    """The decorator that `@job(...)` returns."""

    @overload
    def __call__(self, function: Callable[Concatenate[JobContext, P], Awaitable[R]], /) -> Job[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[JobContext, P], R], /) -> Job[P, R]: ...


@overload
def job(function: Callable[Concatenate[JobContext, P], Awaitable[R]], /) -> Job[P, R]: ...
@overload
def job(function: Callable[Concatenate[JobContext, P], R], /) -> Job[P, R]: ...
@overload
def job(**options: Unpack[JobKeywords]) -> JobDecorator: ...
def job(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Make a function a job: `@job`, or `@job(cron="0 3 * * *", max_attempts=3)`.

    An `async def` runs in the worker's event loop, a `def` in a thread, of which there are `worker.max_threads`. In a
    thread or a process a timeout or cancellation raises `worker.JobInterrupted`.

    Args:
        function: takes a `JobContext` first. Its other arguments are converted to JSON and validated.
        options: see `JobOptions`.

    Raises:
        RegistrationError: The object is not a function, or an option is invalid.
    """
    known = [field.name for field in dataclasses.fields(JobOptions)]
    for option in options.keys() - set(known):
        near = difflib.get_close_matches(option, known, n=1)
        raise RegistrationError(
            f"@job has no option {option!r}"
            + (f"; did you mean {near[0]}?" if near else f"; it has {', '.join(known)}")
        )
    rules = JobOptions(**options)
    return (lambda decorated: make_job(decorated, rules)) if function is None else make_job(function, rules)


def make_job(function: Callable[..., Any], rules: JobOptions) -> Job[..., Any]:
    """Return the job of a function, checked; see `job`.

    Raises:
        RegistrationError: The function or a rule is invalid.
    """
    if isinstance(function, Job):
        raise RegistrationError(f"job {function.name}: it is a job already: remove the second @job")
    name = rules.name or str(getattr(function, "__name__", "")) or type(function).__name__
    run_in = _check_function(name, function, rules.run_in)
    check_job_options(name, rules)
    cron = [rules.cron] if isinstance(rules.cron, str) else list(rules.cron or ())
    parameters = _check_parameters(name, function, has_cron=bool(cron))
    unique = rules.unique if isinstance(rules.unique, bool | str) else tuple(rules.unique)
    made: Job[..., Any] = Job(
        function=function,
        name=name,
        rules=rules,
        run_in=run_in,
        schedule=make_schedule(name, cron, rules.timezone),
        limits=Limits.parse(rules.concurrency, rules.concurrency_key, rules.rate, rules.rate_key),
        fair=Fair.parse(rules.fair_by, rules.fair_weights),
        unique=Unique.parse(unique, rules.unique_for, rules.unique_while),
        do_not_retry=tuple(rules.do_not_retry),
        throttles=tuple(rules.throttle),
        codec=JobCodec(name, function),
    )
    _check_argument_names(made, parameters)
    _check_types(made)
    return made


def _check_function(name: str, function: Callable[..., Any], asked: RunIn | None) -> RunIn:
    """Return where a function runs.

    Raises:
        RegistrationError: The object is not a function, or it cannot run where it is asked to.
    """
    place = describe_place(function)
    if inspect.ismethod(function) or isinstance(function, staticmethod | classmethod):
        raise RegistrationError(
            f"job {name}: {place} is a method: no worker has its object; use a function of a module"
        )
    if not inspect.isfunction(function):
        raise RegistrationError(f"job {name}: {place} is neither an `async def` function nor a `def` one")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise RegistrationError(f"job {name}: {place} contains `yield`: a job returns its result, or writes to tables")
    is_async = inspect.iscoroutinefunction(function)
    run_in: RunIn = asked or ("loop" if is_async else "thread")
    if run_in not in typing.get_args(RunIn):
        raise RegistrationError(f'job {name}: run_in={run_in!r}: give "loop", "thread" or "process"')
    if is_async and run_in != "loop":
        raise RegistrationError(
            f'job {name}: run_in="{run_in}" is for plain functions, and {place} is an `async def`: '
            f"make it a `def`, or remove run_in= and move the long computation to a job of its own"
        )
    if not is_async and run_in == "loop":
        raise RegistrationError(
            f'job {name}: run_in="loop" is for `async def` functions: the plain {place} would block the '
            f"event loop of all jobs"
        )
    if run_in == "process":
        _check_importable(name, function)
    return run_in


def _check_importable(name: str, function: Callable[..., Any]) -> None:
    """Raise `RegistrationError` if another process cannot import a function."""
    place = f"{function.__module__}.{function.__qualname__}"
    if function.__module__ == "__main__":
        raise RegistrationError(
            f'job {name}: run_in="process": {place} is in the script that was started, which another process cannot '
            f"import: move it to a module, e.g. of worker.packages"
        )
    if "<" in function.__qualname__ or function.__module__ not in sys.modules:
        raise RegistrationError(
            f'job {name}: run_in="process": another process cannot import {place}: define it by `def` at the top '
            f"level of a module"
        )


def _check_parameters(name: str, function: Callable[..., Any], *, has_cron: bool) -> list[str]:
    """Return the names of a function's arguments.

    Raises:
        RegistrationError: The function has no context, or arguments that cannot be validated or have no value.
    """
    parameters = list(inspect.signature(function).parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not parameters or parameters[0].kind not in positional:
        raise RegistrationError(f"job {name}: its first parameter has to be the JobContext")
    _check_context(name, function, parameters[0])
    for parameter in parameters[1:]:
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise RegistrationError(f"job {name}: {parameter.name} is positional-only; remove the / behind it")
        if parameter.name.startswith(("_", "model_")):
            raise RegistrationError(f"job {name}: rename {parameter.name}: pydantic reserves names that begin so")
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise RegistrationError(f"job {name}: *{parameter.name} cannot be validated; name its arguments")
        if has_cron and parameter.default is parameter.empty:
            raise RegistrationError(f"job {name}: cron has no value for {parameter.name}; give it a default")
    return [parameter.name for parameter in parameters[1:]]


def _check_context(name: str, function: Callable[..., Any], parameter: inspect.Parameter) -> None:
    """Raise `RegistrationError` if the first parameter of a function is not its context.

    The context's class is compared by name: this package must not load it, and a module may import it for the type
    checker alone.
    """
    if parameter.name in ("self", "cls"):
        raise RegistrationError(
            f"job {name}: {describe_place(function)} is a method: no worker has its object; use a function of a module"
        )
    hint = parameter.annotation
    if isinstance(hint, str):
        try:
            annotated = types.SimpleNamespace(__annotations__={"context": hint})
            hint = typing.get_type_hints(annotated, globalns=function.__globals__)["context"]
        except Exception:  # noqa: BLE001 - e.g. a name that only the type checker imports
            return
    if not _can_be_context(hint):
        shown = hint.__qualname__ if isinstance(hint, type) else hint
        raise RegistrationError(
            f"job {name}: its first parameter has to be the JobContext, and {parameter.name} is {shown}"
        )
    if hint is parameter.empty and parameter.default not in (parameter.empty, None):
        raise RegistrationError(
            f"job {name}: its first parameter has to be the JobContext, and {parameter.name} has the default "
            f"{parameter.default!r}"
        )


def _can_be_context(hint: Any) -> bool:
    """Tell whether a parameter of a type may be the context."""
    if any(hint is each for each in (inspect.Parameter.empty, object, Any)):
        return True
    if isinstance(hint, typing.NewType):
        return _can_be_context(hint.__supertype__)
    kind = typing.get_origin(hint) or hint
    if kind is typing.Annotated:
        return _can_be_context(hint.__origin__)
    if kind is typing.Union or kind is types.UnionType:
        return any(_can_be_context(each) for each in typing.get_args(hint))
    if not isinstance(kind, type):
        return kind is not typing.Literal  # e.g. a type variable
    return _is_protocol(kind) or any(base.__name__ == "JobContext" for base in kind.__mro__)


def _is_protocol(kind: type) -> bool:
    """Tell whether a class is a protocol: it names `Protocol` itself among its bases."""
    # typing.is_protocol is younger than Python 3.11. The Protocol of typing_extensions is another class.
    return any(base.__name__ == "Protocol" and base.__module__ in _TYPING_MODULES for base in kind.__bases__)


def _check_types(made: Job[..., Any]) -> None:
    """Raise `RegistrationError` if a type of the signature cannot be converted to JSON.

    Types that are defined later in the module are checked at the first use, or by the worker when it starts.
    """
    if not made.codec.has_plain_types:
        try:
            made.codec.check()
        except UndefinedType:
            return


def _check_argument_names(made: Job[..., Any], parameters: Sequence[str]) -> None:
    """Raise `RegistrationError` if a rule names an argument that the function does not have."""
    limits, unique = made.limits, made.unique
    keys = [*(unique.by or () if unique else ()), *((limits.concurrency_key, limits.rate_key) if limits else ())]
    keys.append(made.fair.by if made.fair else None)
    for key in keys:
        if key is not None and key not in parameters:
            known = ", ".join(parameters) or "none"
            raise RegistrationError(f"job {made.name}: it has no argument {key!r}; it has {known}")
    check_verify(made.name, made.rules, parameters)
