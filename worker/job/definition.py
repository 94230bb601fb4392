"""`@job`: what a job is, and what its arguments look like in JSON."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import typing
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypedDict,
    TypeVar,
    Unpack,
    overload,
)
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import (
    BaseModel,
    ConfigDict,
    PydanticSchemaGenerationError,
    PydanticUserError,
    TypeAdapter,
    ValidationError,
    create_model,
)
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic_core import to_jsonable_python

from worker.attempt.process_pool import in_process
from worker.attempt.threads import in_thread
from worker.errors import InvalidArguments, RegistrationError
from worker.job.call import Call, call_of
from worker.job.limits import Limits, Rate, Unique, UniqueWhile, unique_of

if TYPE_CHECKING:
    from worker.attempt.context import JobContext
    from worker.batch.throttle import Throttle

P = ParamSpec("P")
R = TypeVar("R")

#: Seconds until the next try: the same each time, or by the number of the try that failed, from 1.
Backoff = float | Callable[[int], float]
OnStall = Literal["report", "retry"]


@dataclass(frozen=True)
class CronLine:
    """One due-time rule of a job: five fields of cron, and the zone in which they are read."""

    expression: str
    timezone: str

    def __str__(self) -> str:
        return f"{self.expression} {self.timezone}"

    def next_after(self, moment: datetime) -> datetime:
        """Return the first due time after `moment`, which is aware; Debian's rules at both changes of the clock.

        A time that the clock skips is due at once after the change; one that comes twice is due the first time.
        """
        return next(CronSim(self.expression, moment.astimezone(ZoneInfo(self.timezone))))


@dataclass(frozen=True)
class EnqueueOptions:
    """When, as what and where a job is enqueued; the rest of `Job.options`."""

    id: str | None = None
    delay: float | timedelta | None = None
    at: datetime | None = None
    queue: str | None = None
    replace: bool = False
    expires: float | timedelta | datetime | None = None
    priority: int | None = None
    deadline: float | timedelta | datetime | None = None
    then: tuple[Call[Any], ...] = ()


#: The highest priority: each that is in use costs a look in each turn of a worker.
MAX_PRIORITY = 9


def checked_priority(whose: str, priority: int | None) -> None:
    """Raise `InvalidArguments` unless a priority is one, or None."""
    if priority is not None and (type(priority) is not int or not 0 <= priority <= MAX_PRIORITY):
        raise InvalidArguments(f"{whose}: priority={priority!r}: give a whole number from 0 to {MAX_PRIORITY}")


@dataclass(frozen=True, kw_only=True)
class Job(Generic[P, R]):
    """A job: an async function with a name, and the rules by which it is run."""

    function: Callable[Concatenate[JobContext, P], Awaitable[R]]
    name: str
    cron: tuple[CronLine, ...] = ()
    timeout: float | None = None
    grace: float | None = None
    max_attempts: int | None = None
    no_retry: tuple[type[BaseException], ...] = ()
    keep_result: float | None = None
    throttle: tuple[Throttle, ...] = ()
    limits: Limits | None = None
    unique: Unique | None = None
    backoff: Backoff | None = None
    stall: float | None = None
    on_stall: OnStall = "report"
    priority: int = 0
    process: bool = False
    enqueue_options: EnqueueOptions = EnqueueOptions()

    async def __call__(self, ctx: JobContext, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function as it is, in a context that the caller has."""
        return await self.function(ctx, *args, **kwargs)

    def options(
        self,
        *,
        id: str | None = None,  # noqa: A002 - the name that callers expect
        delay: float | timedelta | None = None,
        at: datetime | None = None,
        queue: str | None = None,
        replace: bool = False,
        expires: float | timedelta | datetime | None = None,
        deadline: float | timedelta | datetime | None = None,
        priority: int | None = None,
        then: Call[Any] | Sequence[Call[Any]] = (),
    ) -> Job[P, R]:
        """Return this job to be enqueued under conditions: `client.enqueue(job.options(delay=60), days=90)`.

        Args:
            id: the run's id; the same id twice is one run.
            delay: seconds to wait first.
            at: aware time of the run.
            queue: name of another queue.
            replace: take the place of the run that waits under this id (or, for a unique job, with these arguments):
                its arguments and its due time. With a delay, a run that comes again and again is put off each time.
            expires: seconds from now on, or aware time, after which the run is not begun any more: it ends as dead, and
                says so. One that has begun goes on.
            deadline: seconds from now on, or aware time, by which it has to have ended: it is cancelled then, also a
                walk, and not tried again.
            priority: 0 to 9, instead of the job's own.
            then: what follows it, once it has succeeded: `job.call(...)`, or several, one after the other.
        """
        if delay is not None and at is not None:
            raise InvalidArguments(f"job {self.name}: give delay= or at=, not both")
        for what, moment in (("at", at), ("expires", expires), ("deadline", deadline)):
            if isinstance(moment, datetime) and moment.tzinfo is None:
                raise InvalidArguments(
                    f"job {self.name}: {what}={moment} has no time zone; use datetime.now(UTC) and the like"
                )
        checked_priority(f"job {self.name}", priority)
        calls = (then,) if isinstance(then, Call) else tuple(then)
        if not all(isinstance(call, Call) for call in calls):
            raise InvalidArguments(f"job {self.name}: then= takes calls: other_job.call(argument=1)")
        options = EnqueueOptions(id, delay, at, queue, replace, expires, priority, deadline, calls)
        return dataclasses.replace(self, enqueue_options=options)

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Return this job with its arguments, to follow a run (`options(then=...)`) or to stand in a group.

        Args:
            args: as for `Client.enqueue`.
            kwargs: as well; one of them may be `PREVIOUS_RESULT`: what the run before returns, or the results of a
            group.

        Raises:
            InvalidArguments: they do not fit the signature, or the job is unique.
        """
        return call_of(self, args, kwargs)

    @property
    def priority_now(self) -> int:
        """The priority with which it is enqueued: that of the options, else the job's own."""
        given = self.enqueue_options.priority
        return self.priority if given is None else given

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").split("\n", 1)[0]

    @cached_property
    def signature(self) -> inspect.Signature:
        """The function's signature without its context."""
        from worker.attempt.context import JobContext

        try:
            whole = inspect.signature(self.function, eval_str=True, locals={"JobContext": JobContext})
        except NameError:  # a type that is imported for the type checker alone: `check` says so
            whole = inspect.signature(self.function)
        return whole.replace(parameters=list(whole.parameters.values())[1:])

    @cached_property
    def _arguments(self) -> type[BaseModel]:
        from worker.attempt.context import JobContext

        try:
            hints = typing.get_type_hints(self.function, localns={"JobContext": JobContext}, include_extras=True)
        except NameError as error:
            raise RegistrationError(f"job {self.name}: {error}; import the types of its arguments") from None
        fields: dict[str, Any] = {}
        for parameter in self.signature.parameters.values():
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hints.get(parameter.name, Any), default)
        config = ConfigDict(extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")
        try:
            return create_model(f"{self.name}_arguments", __config__=config, **fields)
        except PydanticSchemaGenerationError as error:
            raise RegistrationError(f"job {self.name}: {str(error).splitlines()[0]}") from None

    @cached_property
    def _returns(self) -> TypeAdapter[Any]:
        from worker.attempt.context import JobContext

        hints = typing.get_type_hints(self.function, localns={"JobContext": JobContext}, include_extras=True)
        hint = hints.get("return", Any)
        try:
            return TypeAdapter(hint, config=ConfigDict(ser_json_bytes="base64", val_json_bytes="base64"))
        except PydanticUserError:  # a model, a dataclass or a TypedDict, whose own configuration holds
            return TypeAdapter(hint)

    @cached_property
    def version(self) -> str:
        """Mark of the signature: the same where the arguments have the same names, types and rules."""
        try:
            schema = json.dumps(self._arguments.model_json_schema(), sort_keys=True)
        except PydanticInvalidForJsonSchema:
            schema = str(self.signature)
        return hashlib.sha256(schema.encode()).hexdigest()[:8]

    def check(self) -> None:
        """Build what validates arguments and results.

        Raises:
            RegistrationError: a type of the signature cannot go through JSON.
        """
        self._arguments  # noqa: B018
        try:
            self._returns  # noqa: B018
        except PydanticSchemaGenerationError as error:
            raise RegistrationError(f"job {self.name}: {str(error).splitlines()[0]}") from None

    def encode_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments as JSON values by name, validated.

        Raises:
            InvalidArguments: they do not fit the signature.
        """
        values: dict[str, Any] = json.loads(self.encode_arguments_json(args, kwargs))
        return values

    def encode_arguments_json(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], *, without: Sequence[str] = ()
    ) -> str:
        """Return the arguments as the text of a JSON object, validated.

        Args:
            args: by place.
            kwargs: by name.
            without: names of those that are not known yet.

        Raises:
            InvalidArguments: they do not fit the signature.
        """
        if not args and not kwargs and not self._arguments.model_fields:
            return "{}"
        model = self._validated(args, kwargs, from_json=False, without=without)
        return model.model_dump_json(exclude_unset=True, exclude=set(without))

    def decode_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return the arguments by name, made from JSON values of a payload into the signature's types.

        Raises:
            InvalidArguments: they do not fit the signature.
        """
        if not args and not kwargs and not self._arguments.model_fields:
            return {}
        model = self._validated(args, kwargs, from_json=True)
        return {name: getattr(model, name) for name in type(model).model_fields}

    def _validated(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], *, from_json: bool, without: Sequence[str] = ()
    ) -> BaseModel:
        try:
            named = self.signature.bind_partial(*args).arguments if args else {}
        except TypeError:
            raise InvalidArguments(
                f"job {self.name}{self.signature}: {len(args)} positional arguments were given"
            ) from None
        twice = sorted(set(named) & set(kwargs))
        if twice:
            raise InvalidArguments(f"job {self.name}: {', '.join(twice)} was given by place and by name")
        values = {**named, **kwargs}
        arguments = self._arguments
        if without:
            unknown = sorted(set(without) - arguments.model_fields.keys())
            if unknown:
                raise InvalidArguments(f"job {self.name}{self.signature}: it has no argument {', '.join(unknown)}")
            # Any for those that are not known yet.
            arguments = create_model(f"{self.name}_call", __base__=arguments, **dict.fromkeys(without, (Any, None)))  # type: ignore[call-overload]
        try:
            if from_json:
                return arguments.model_validate_json(json.dumps(values))
            return arguments.model_validate(values)
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, problem['loc']))}: {problem['msg'].lower()}" for problem in error.errors()
            )
            raise InvalidArguments(f"job {self.name}{self.signature}: {problems}") from None

    def encode_result(self, result: Any) -> str:
        """Return what the job returned as JSON text.

        Raises:
            ValueError: it cannot be JSON.
        """
        try:
            return self._returns.dump_json(result, warnings="none").decode()
        except (ValueError, TypeError):
            return json.dumps(to_jsonable_python(result))

    def decode_result(self, value: Any) -> Any:
        """Return a result from JSON values in the type that the function promises."""
        return self.decode_result_json(json.dumps(value))

    def decode_result_json(self, text: str) -> Any:
        """Return a result from JSON text in the type that the function promises."""
        try:
            return self._returns.validate_json(text)
        except ValidationError:
            return json.loads(text)


class JobOptions(TypedDict, total=False):
    """What `@job(...)` can be told, see `job`."""

    name: str | None
    cron: str | Sequence[str] | None
    timezone: str
    timeout: float | None
    grace: float | None
    max_attempts: int | None
    no_retry: Iterable[type[BaseException]]
    keep_result: float | None
    throttle: Iterable[Throttle]
    limit: int
    limit_by: str | None
    rate: str | None
    rate_by: str | None
    unique: bool | str | Sequence[str]
    unique_for: float | None
    unique_while: UniqueWhile
    backoff: Backoff | None
    stall: float | None
    on_stall: OnStall
    priority: int
    process: bool


class JobDecorator(Protocol):
    """What `@job(...)` returns."""

    @overload
    def __call__(self, function: Callable[Concatenate[JobContext, P], Awaitable[R]], /) -> Job[P, R]: ...
    @overload
    def __call__(self, function: Callable[Concatenate[JobContext, P], R], /) -> Job[P, R]: ...


@overload
def job(function: Callable[Concatenate[JobContext, P], Awaitable[R]], /) -> Job[P, R]: ...
@overload
def job(function: Callable[Concatenate[JobContext, P], R], /) -> Job[P, R]: ...
@overload
def job(**options: Unpack[JobOptions]) -> JobDecorator: ...
def job(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    cron: str | Sequence[str] | None = None,
    timezone: str = "UTC",
    timeout: float | None = None,
    grace: float | None = None,
    max_attempts: int | None = None,
    no_retry: Iterable[type[BaseException]] = (),
    keep_result: float | None = None,
    throttle: Iterable[Throttle] = (),
    limit: int = 0,
    limit_by: str | None = None,
    rate: str | None = None,
    rate_by: str | None = None,
    unique: bool | str | Sequence[str] = False,
    unique_for: float | None = None,
    unique_while: UniqueWhile = "active",
    backoff: Backoff | None = None,
    stall: float | None = None,
    on_stall: OnStall = "report",
    priority: int = 0,
    process: bool = False,
) -> Any:
    """Make a function a job.

    Args:
        function: takes a `JobContext` first; the other arguments go through JSON and are validated.
        name: name in the queue; the function's by default.
        cron: one or several cron lines of five fields, e.g. `"0 3 * * *"`; the arguments must have defaults.
        timezone: zone of the cron lines, e.g. `Europe/London`.
        timeout: seconds; for jobs without a durable loop; `worker.job_timeout_seconds` by default. Then an exception is
            raised inside the job, which may clean up.
        grace: seconds that it has for that, and after a cancellation; `worker.grace_period_seconds` by default. One
        that has
            not ended by then is given up: the run ends, or is tried again, and its slot is free.
        max_attempts: `worker.max_attempts` by default.
        no_retry: errors that another try cannot cure.
        keep_result: seconds that the result stays in Redis; `worker.result_ttl_seconds` by default.
        throttle: reasons for its walks to wait between two batches, besides those of the settings.
        limit: runs at the same time, over all workers; a place whose worker has died is free when its lease ends.
        limit_by: name of an argument: the limit holds for each of its values.
        rate: runs a time, over all workers, evenly spaced: "100/minute"; "100/minute burst 10" lets ten come at once
            after a pause.
        rate_by: name of an argument: the rate holds for each of its values.
        unique: one run with the same arguments: True for all of them, or the names of those that count. Who enqueues it
            again gets the run that is there.
        unique_for: seconds for which that holds; by default as long as the run is in the queue.
        unique_while: "waiting": only until it is begun.
        backoff: seconds until the next try, or a function of the number of the try that failed; by default that of the
            settings, exponential with jitter.
        stall: seconds without progress (no batch, no `ctx.progress`) after which the run is reported as stalled;
            `worker.stall_timeout_seconds` by default. A run that does progress is never ended for its age.
        on_stall: "retry": it is cancelled, too, and tried again.
        priority: 0 to 9; of the jobs of a queue that are due, those with the highest are taken first.
        process: a plain `def` runs in a process of its own, of which there are `worker.max_job_processes`: for what
            computes for long. Its context has `run_id`, `job`, `attempt`, `enqueued_at`, `headers`,
            `settings` and `progress`.

    A plain `def` runs in a thread, of which there are `worker.max_threads`; what interrupts it is
    `worker.JobInterrupted`.

    Raises:
        RegistrationError: no function, a cron line or a zone that is none.
    """
    if function is None:
        return lambda decorated: job_of(
            decorated,
            name=name,
            cron=[cron] if isinstance(cron, str) else list(cron or ()),
            timezone=timezone,
            timeout=timeout,
            grace=grace,
            max_attempts=max_attempts,
            no_retry=tuple(no_retry),
            keep_result=keep_result,
            throttle=tuple(throttle),
            limits=_limits(limit, limit_by, rate, rate_by),
            unique=unique_of(unique if isinstance(unique, bool | str) else tuple(unique), unique_for, unique_while),
            backoff=backoff,
            stall=stall,
            on_stall=on_stall,
            priority=priority,
            process=process,
        )
    return job_of(function, name=None, cron=[], timezone="UTC")


def job_of(
    function: Callable[..., Any], *, name: str | None, cron: list[str], timezone: str, **rules: Any
) -> Job[..., Any]:
    """Return the job of a function, checked; see `job`."""
    called = name or str(getattr(function, "__name__", ""))
    is_async = inspect.iscoroutinefunction(function)
    if not is_async and (not inspect.isfunction(function) or inspect.isgeneratorfunction(function)):
        raise RegistrationError(f"job {called}: {place_of(function)} is not an `async def` function, nor a `def` one")
    if rules.get("process"):
        function = in_process(called, function)
    elif not is_async:
        function = in_thread(function)
    parameters = list(inspect.signature(function).parameters.values())
    if not parameters or parameters[0].kind not in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        raise RegistrationError(f"job {called}: its first parameter has to be the JobContext")
    for parameter in parameters[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise RegistrationError(f"job {called}: *{parameter.name} cannot be validated; name its arguments")
        if cron and parameter.default is parameter.empty:
            raise RegistrationError(f"job {called}: cron has no value for {parameter.name}; give it a default")
    _check_names(called, [parameter.name for parameter in parameters[1:]], rules)
    try:
        checked_priority(f"job {called}", rules.get("priority"))
    except InvalidArguments as error:
        raise RegistrationError(str(error)) from None
    lines = tuple(_cron_line(called, expression, timezone) for expression in cron)
    if len(set(lines)) != len(lines):
        raise RegistrationError(f"job {called}: a cron line stands twice")
    return Job(function=function, name=called, cron=lines, **rules)


def _limits(limit: int, limit_by: str | None, rate: str | None, rate_by: str | None) -> Limits | None:
    if limit < 0:
        raise RegistrationError(f"limit={limit}: at least one run at a time, or 0 for any number")
    if not limit and rate is None:
        return None
    return Limits(limit, limit_by, None if rate is None else Rate.parse(rate), rate_by)


def _check_names(job: str, parameters: Sequence[str], rules: Mapping[str, Any]) -> None:
    """Refuse names of arguments that the function does not have."""
    limits, unique = rules.get("limits"), rules.get("unique")
    named = [*(unique.by or () if unique else ()), *((limits.limit_by, limits.rate_by) if limits else ())]
    for name in named:
        if name is not None and name not in parameters:
            raise RegistrationError(f"job {job}: it has no argument {name!r}; it has {', '.join(parameters) or 'none'}")


def _cron_line(name: str, expression: str, timezone: str) -> CronLine:
    try:
        zone = ZoneInfo(timezone)
    except (KeyError, ValueError, OSError):
        raise RegistrationError(f"job {name}: there is no time zone {timezone!r}; write e.g. Europe/London") from None
    try:
        CronSim(expression, datetime.now(zone))
    except CronSimError as error:
        raise RegistrationError(
            f"job {name}: cron {expression!r}: {error}; write five fields: minute hour day month weekday"
        ) from None
    return CronLine(expression, timezone)


def place_of(function: Any) -> str:
    """Return module and line of a function, for an error."""
    code = getattr(function, "__code__", None)
    return f"{function.__module__}:{code.co_firstlineno}" if code else repr(function)
