"""A job: a function, the options of its `@job` decorator, and the options of one enqueueing."""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Concatenate, Generic, Literal, ParamSpec, TypeVar

from worker.errors import InvalidArguments, JobProcessError
from worker.job.arguments import JobCodec
from worker.job.call import PREVIOUS_RESULT, Call
from worker.job.limits import Fair, Limits, Unique, UniqueWhile
from worker.job.schedule import CronLine

if TYPE_CHECKING:
    from worker.attempt.context import JobContext
    from worker.batch.throttle import Throttle

P = ParamSpec("P")
R = TypeVar("R")

#: Seconds until the next attempt: a constant, or a function of the number of the failed attempt, from 1.
Backoff = float | Callable[[int], float]
OnStall = Literal["log", "retry"]
OnStatementChange = Literal["fail", "continue"]
RunIn = Literal["loop", "thread", "process"]

#: The highest priority. Each priority in use costs a lookup in each claim of a worker.
MAX_PRIORITY = 9
#: The longest duration of an option: a hundred years.
LONGEST_SECONDS = 100 * 366 * 86_400


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """Options of the `@job` decorator.

    Attributes:
        name: name in the queue; by default that of the function.
        cron: one or several cron expressions of five fields, e.g. `"0 3 * * *"`. The arguments must have defaults.
        timezone: time zone of the cron expressions, e.g. `Europe/London`.
        run_in: "loop" for an `async def`, "thread" for a `def`; these are the defaults. "process" runs a `def` in a
            process of its own, for long computations: at most `worker.max_job_processes` run at once. Its context has
            `run_id`, `job`, `attempt`, `enqueued_at`, `headers`, `settings` and `progress`.
        timeout: seconds, for jobs without a durable loop; by default `worker.job_timeout_seconds`. After that time an
            exception is raised inside the job, which may clean up.
        grace_period: seconds that the job has to clean up after a timeout or a cancellation; by default
            `worker.grace_period_seconds`. A job that has not ended by then is abandoned: its run ends or is retried,
            and its slot is free.
        max_attempts: attempts without progress until the run is dead; by default `worker.max_attempts`.
        do_not_retry: classes of errors that another attempt cannot cure.
        backoff: seconds until the next attempt, or a function of the number of the failed attempt; by default
            exponential with jitter, as the settings say.
        result_ttl: seconds that the result stays in Redis; by default `worker.result_ttl_seconds`.
        stall_timeout: seconds without progress (a committed batch, or `ctx.progress`) after which the run counts as
            stalled; by default `worker.stall_timeout_seconds`. A run that makes progress is never timed out by it.
        yield_after: seconds after which a walk goes back to the queue at its next boundary, at no cost, if other runs
            wait for its slot, or for its place under `concurrency`; 0 for never; by default `worker.yield_seconds`.
        on_stall: "log" reports a stalled run in log, mirror and events; "retry" also cancels and retries it.
        overlap: whether two runs with the same arguments may walk the same table at once with `parallel`.
        on_statement_change: "fail" ends a run whose walk has another statement (FROM, WHERE, values) than the one that
            its cursor belongs to, with `CursorMismatch`; "continue" resumes behind the cursor with the new statement.
        throttle: throttles for the walks of this job, besides those of the settings.
        concurrency: runs at once, over all workers; 0 for any number. The slot of a dead worker is free when its lease
            has expired.
        concurrency_key: name of an argument; the concurrency then holds for each of its values.
        rate: starts per interval, over all workers, evenly spaced: "100/minute". "100/minute burst 10" lets ten runs
            start at once after a pause.
        rate_key: name of an argument; the rate then holds for each of its values.
        unique: at most one run with the same arguments: True for all arguments, or the names of the arguments that
            are compared. Enqueueing the job again returns the existing run.
        unique_for: seconds for which a run counts; by default as long as it is in the queue.
        unique_while: "waiting" counts a run only until it begins.
        fair_by: name of an argument. Of the runs that wait in a queue, its values take turns, however many runs one of
            them has. Jobs with the same `fair_by` take turns together.
        fair_weights: turns that a value gets where others get one, e.g. `{"north": 3}`.
        verify: a `select()` of the rows that the job has left undone, or a function that returns it from the job's
            arguments. It runs when the job has returned, and by `worker verify`. A run with such rows ends as
            incomplete, with their number and five of their keys.
        once: makes the job a data migration: it succeeds once in the life of the database. Its name is the id of its
            run, and is remembered for ever; `worker require` makes it the gate of a deploy.
        priority: 0 to 9. Of the due jobs of a queue, those with the highest priority are claimed first.
    """

    name: str | None = None
    cron: str | Sequence[str] | None = None
    timezone: str = "UTC"
    run_in: RunIn | None = None
    timeout: float | None = None
    grace_period: float | None = None
    max_attempts: int | None = None
    do_not_retry: Iterable[type[BaseException]] = ()
    backoff: Backoff | None = None
    result_ttl: float | None = None
    stall_timeout: float | None = None
    yield_after: float | None = None
    on_stall: OnStall = "log"
    on_statement_change: OnStatementChange = "fail"
    overlap: bool = False
    throttle: Iterable[Throttle] = ()
    concurrency: int = 0
    concurrency_key: str | None = None
    rate: str | None = None
    rate_key: str | None = None
    unique: bool | str | Sequence[str] = False
    unique_for: float | None = None
    unique_while: UniqueWhile = "active"
    fair_by: str | None = None
    fair_weights: Mapping[str, float] | None = None
    verify: Any = None
    once: bool = False
    priority: int = 0


@dataclass(frozen=True)
class EnqueueOptions:
    """Options of one enqueueing; see `Job.options`."""

    id: str | None = None
    delay: float | timedelta | None = None
    at: datetime | None = None
    queue: str | None = None
    replace: bool = False
    expires: float | timedelta | datetime | None = None
    priority: int | None = None
    deadline: float | timedelta | datetime | None = None
    then: tuple[Call[Any], ...] = ()


def check_enqueue_options(owner: str, options: EnqueueOptions) -> None:
    """Raise `InvalidArguments` if options contradict each other, or one of their times cannot be kept.

    Args:
        owner: the job, for the error.
        options: the options.
    """
    if options.delay is not None and options.at is not None:
        raise InvalidArguments(f"{owner}: give delay= or at=, not both")
    if options.at is not None and not isinstance(options.at, datetime):
        raise InvalidArguments(f"{owner}: at={options.at!r} is not an aware datetime")
    if isinstance(options.delay, datetime):
        raise InvalidArguments(f"{owner}: delay={options.delay} is a time: give it as at=")
    times = (("delay", options.delay), ("at", options.at), ("expires", options.expires), ("deadline", options.deadline))
    for option, time in times:
        if isinstance(time, datetime) and time.tzinfo is None:
            raise InvalidArguments(f"{owner}: {option}={time} has no time zone; use datetime.now(UTC) or similar")
        if isinstance(time, datetime) and not 1970 <= time.year <= 9998:
            raise InvalidArguments(f"{owner}: {option}={time} is not between 1970 and 9998")
        if time is not None and not isinstance(time, datetime) and not _is_duration(time):
            raise InvalidArguments(f"{owner}: {option}={time!r} is not a number of seconds within a hundred years")
    check_priority(owner, options.priority)


def _is_duration(time: Any) -> bool:
    if isinstance(time, bool | str | bytes):
        return False
    try:
        seconds = time.total_seconds() if isinstance(time, timedelta) else float(time)
    except (TypeError, ValueError, OverflowError):
        return False
    return -LONGEST_SECONDS <= seconds <= LONGEST_SECONDS


def check_priority(owner: str, priority: int | None) -> None:
    """Raise `InvalidArguments` if `priority` is neither None nor an integer from 0 to 9."""
    if priority is not None and (type(priority) is not int or not 0 <= priority <= MAX_PRIORITY):
        raise InvalidArguments(f"{owner}: priority={priority!r}: give a whole number from 0 to {MAX_PRIORITY}")


@dataclass(frozen=True, kw_only=True)
class Job(Generic[P, R]):
    """A function that runs as a job, and the rules by which it runs; made by `@job`.

    Attributes:
        function: the decorated function.
        name: name in the queue.
        rules: the options of the decorator, as they were given.
        run_in: where the function runs.
        schedule: its due times.
        limits: concurrency and rate; None for none.
        unique: the rule of unique runs; None for none.
        fair: the argument by which waiting runs take turns; None for none.
        do_not_retry: classes of errors that another attempt cannot cure.
        throttles: throttles of its walks, besides those of the settings.
        codec: validates and converts arguments and results.
        enqueue_options: the options of one enqueueing; see `options`.
    """

    function: Callable[Concatenate[JobContext, P], Any]
    name: str
    rules: JobOptions = JobOptions()
    run_in: RunIn = "loop"
    schedule: tuple[CronLine, ...] = ()
    limits: Limits | None = None
    unique: Unique | None = None
    fair: Fair | None = None
    do_not_retry: tuple[type[BaseException], ...] = ()
    throttles: tuple[Throttle, ...] = ()
    codec: JobCodec = field(compare=False)
    enqueue_options: EnqueueOptions = EnqueueOptions()

    async def __call__(self, ctx: JobContext, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function in the context of another job, where this job's function runs."""
        result: R
        if self.run_in == "loop":
            result = await self.function(ctx, *args, **kwargs)
        else:
            result = await ctx._call(self, args, kwargs)
        return result

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
        """Return this job with options for its enqueueing: `client.enqueue(job.options(delay=60), days=90)`.

        Args:
            id: id of the run. Enqueueing the same id twice makes one run.
            delay: seconds to wait before the run is due.
            at: aware time at which the run is due.
            queue: name of another queue.
            replace: replace arguments and due time of the run that waits under this id (of a unique job: with these
                arguments). With a delay, a run that is enqueued again and again is postponed each time.
            expires: seconds from now, or aware time. A run that has not begun by then ends as dead. A run that has
                begun continues.
            deadline: seconds from now, or aware time. A run that has not ended by then is cancelled, also a walk, and
                is not retried.
            priority: 0 to 9, instead of the job's own.
            then: the call, or the calls in their order, that follow when this run has succeeded: `job.call(...)`.

        Raises:
            InvalidArguments: The options contradict each other, or a time has no time zone or cannot be kept.
        """
        calls = (then,) if isinstance(then, Call | Job) else tuple(then)
        if not all(isinstance(call, Call) for call in calls):
            raise InvalidArguments(f"job {self.name}: then= takes calls: other_job.call(argument=1)")
        options = EnqueueOptions(id, delay, at, queue, replace, expires, priority, deadline, calls)
        check_enqueue_options(f"job {self.name}", options)
        return dataclasses.replace(self, enqueue_options=options)

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """Return this job with its arguments, to follow a run (`options(then=...)`) or to be a member of a group.

        Args:
            args: as for `Client.enqueue`.
            kwargs: as for `Client.enqueue`. One of them may be `PREVIOUS_RESULT`: the result of the preceding run, or
                the list of the results of a group.

        Raises:
            InvalidArguments: They do not fit the signature, or the job's options or rules do not fit a call.
        """
        options = self.enqueue_options
        if self.unique is not None:
            raise InvalidArguments(f"job {self.name}: a unique job can neither follow a run nor be a member of a group")
        if self.rules.once:
            raise InvalidArguments(f"job {self.name}: a data migration neither follows a run nor is member of a group")
        if options.id is not None or options.at is not None or options.replace:
            raise InvalidArguments(f"job {self.name}: a call takes no id=, at= or replace=; delay= is possible")
        if options.deadline is not None or isinstance(options.expires, datetime):
            raise InvalidArguments(
                f"job {self.name}: a call takes no deadline=, and its expires= counts from its due time"
            )
        named = dict(kwargs)
        if any(value is PREVIOUS_RESULT for value in args):
            raise InvalidArguments(f"job {self.name}: give PREVIOUS_RESULT by name")
        pending = [name for name, value in named.items() if value is PREVIOUS_RESULT]
        if len(pending) > 1:
            raise InvalidArguments(f"job {self.name}: {' and '.join(pending)} cannot both be PREVIOUS_RESULT")
        for name in pending:
            del named[name]
        text = self.codec.encode_arguments(args, named, without=pending)
        return Call(self, text, pending[0] if pending else None, options.then)

    def forbids_retry(self, error: BaseException) -> bool:
        """Return whether `@job(do_not_retry=...)` names the class of an error, or a base of it.

        The error of a job in a subprocess is compared by the names of its classes.
        """
        if isinstance(error, JobProcessError):
            return any(f"{kind.__module__}.{kind.__qualname__}" in error.type_names for kind in self.do_not_retry)
        return isinstance(error, self.do_not_retry)

    def unique_key(self, arguments: Mapping[str, Any]) -> str:
        """Return the key that equal runs of this unique job share; an argument that is left out has its default.

        Args:
            arguments: JSON values by name.
        """
        assert self.unique is not None  # noqa: S101
        return self.unique.key(self.name, self.codec.with_defaults(arguments))

    def fair_entry(self, arguments: Mapping[str, Any]) -> str:
        """Return the weight and the flow of a run (fair.lua); empty if the job is not fair.

        Args:
            arguments: JSON values by name.
        """
        return "" if self.fair is None else self.fair.entry(self.codec.with_defaults(arguments))

    @property
    def priority(self) -> int:
        """The priority of its runs: that of the options of enqueueing, otherwise that of the decorator."""
        given = self.enqueue_options.priority
        return self.rules.priority if given is None else given

    @property
    def summary(self) -> str:
        """First line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").split("\n", 1)[0]

    @property
    def signature(self) -> inspect.Signature:
        """The function's signature without its context."""
        return self.codec.signature

    @property
    def version(self) -> str:
        """Hash of the signature; see `JobCodec.version`."""
        return self.codec.version

    def encode_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return validated arguments as JSON values by name.

        Raises:
            InvalidArguments: They do not fit the signature.
        """
        values: dict[str, Any] = json.loads(self.codec.encode_arguments(args, kwargs))
        return values

    def encode_arguments_json(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """Return validated arguments as the text of a JSON object; see `JobCodec.encode_arguments`."""
        return self.codec.encode_arguments(args, kwargs)

    def decode_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments by name, in the types of the signature; see `JobCodec.decode_arguments`."""
        return self.codec.decode_arguments(args, kwargs)

    def encode_result(self, result: Any) -> str:
        """Return a result as JSON text; see `JobCodec.encode_result`."""
        return self.codec.encode_result(result)

    def decode_result(self, value: Any) -> Any:
        """Return a result from JSON values, in the type that the function declares."""
        return self.codec.decode_result(json.dumps(value))

    def decode_result_json(self, text: str) -> Any:
        """Return a result from JSON text, in the type that the function declares."""
        return self.codec.decode_result(text)


def describe_place(function: Any) -> str:
    """Return module and line of a function, for an error."""
    code = getattr(function, "__code__", None)
    return f"{function.__module__}:{code.co_firstlineno}" if code else repr(function)
