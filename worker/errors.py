"""Every error that Longhaul raises.

Errors for applications, which jobs and callers raise or catch:

    LonghaulError
    ├── SettingsError            a setting is unknown, invalid, or contradicts another one
    ├── RegistrationError        a job is defined twice, or in a way that cannot work
    ├── UnknownJob               no job of that name is registered
    ├── InvalidArguments         the arguments do not match the job's signature
    ├── InvalidPayload           a payload or result in Redis cannot be read
    ├── CorruptKey               a key in Redis has a type or a value that is not Longhaul's
    ├── DatabaseNotMigrated      the schema `worker` is missing or older than this worker
    ├── ServerUnavailable        PostgreSQL or Redis does not answer, or refuses the command
    ├── UsageError               the job's code does something that cannot work
    ├── UnsupportedStatement     a statement cannot be walked
    ├── SourceUnavailable        a file or a service that a loop reads cannot be read
    ├── SinkUnavailable          a directory or an object store that a job writes to cannot be written
    ├── InvalidRow               a row of a source cannot be parsed
    ├── CursorMismatch           the stored cursor belongs to another statement
    ├── LedgerDamaged            rows of the ledger were changed or deleted by hand
    ├── RunIdConflict            the run id belongs to an unfinished run of another job
    ├── BulkError                a bulk operation failed at one row
    ├── LazyLoadError            an attribute access would have sent SQL from synchronous code
    ├── PoisonBatch              a batch ended its worker at every attempt
    ├── HandFailed               a helper run of a walk with `parallel` failed for good
    ├── JobFailed                raised by `Run.result()`: the job ended with an error
    ├── JobCancelled             raised by `Run.result()`: an operator cancelled the run
    ├── ResultTooLarge           raised by `Run.result()`: the result was not stored
    ├── NonRetryableError        raise it in a job: the run is not retried
    ├── StallTimeout             the run made no progress and is retried
    ├── ConnectionLost           a job lost a connection to a server that answers others
    ├── JobProcessDied           the subprocess of a job ended while it ran
    ├── JobProcessError          a job in a subprocess raised an exception
    └── Retry                    raise it in a job: the run is retried
        └── Snooze               raise it in a job: the run is retried and no attempt is counted
    JobInterrupted (BaseException)   raised inside a plain function that runs in a thread or a process

Private control flow of the worker. None of it is an `Exception`, so that a job's own `except Exception` lets it pass:

    AttemptExit (BaseException)
    ├── AttemptReleased          the run goes back to the queue
    ├── Cancelled                an operator cancelled the run
    ├── FencedOut                another worker owns the run now
    ├── RangeLost                another hand has the range of a walk now
    ├── HandEnded                a helper run has nothing more to do in the walk that it helps with
    └── AlreadyFinished          the ledger already has the result of the run

`format_error` returns any error as one line of text; `iter_causes` follows what it was raised from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal


class LonghaulError(Exception):
    """Base class of all errors of this package."""

    #: False if another attempt cannot succeed either.
    retryable = True


# --- Configuration, client, and jobs


class SettingsError(LonghaulError):
    """A setting is unknown, has an invalid value, or contradicts another one."""

    retryable = False


class RegistrationError(LonghaulError):
    """A job is defined twice, or in a way that cannot work."""

    retryable = False


class UnknownJob(LonghaulError):
    """No job of that name is registered."""

    retryable = False


class InvalidArguments(LonghaulError):
    """The arguments do not match the job's signature. `problems` has the place and the problem of each, if known."""

    retryable = False
    problems: Sequence[tuple[str, str]] = ()


class InvalidPayload(LonghaulError):
    """A payload, result or dead letter in Redis cannot be read."""

    retryable = False


class CorruptKey(LonghaulError):
    """A key in Redis has another type than Longhaul gives it, or a value that cannot be used.

    The message names the key and the command of `redis-cli` that mends it.
    """


class DatabaseNotMigrated(LonghaulError):
    """The schema `worker` is missing or older than this worker: run `worker migrate`."""

    retryable = False


class ServerUnavailable(LonghaulError):
    """PostgreSQL or Redis does not answer, or refuses the command."""


class UsageError(LonghaulError):
    """The job's code does something that cannot work. Another attempt would fail in the same way."""

    retryable = False


class UnsupportedStatement(LonghaulError):
    """A statement cannot be walked. The message gives the reason and the remedy."""

    retryable = False


class SourceUnavailable(LonghaulError):
    """A file, an object or a service that a loop reads cannot be read. The run is attempted again."""


class SinkUnavailable(LonghaulError):
    """A directory or an object store that a job writes to is full or cannot be written. The run is attempted again."""


class InvalidRow(LonghaulError):
    """A row of a source cannot be parsed. The message names the source and the line, and the reason.

    `on_error="quarantine"` quarantines such rows and continues.
    """

    retryable = False


class CursorMismatch(LonghaulError):
    """The cursor in the ledger belongs to another statement than the job has now.

    Attributes:
        code_version: Version of the jobs' code that began the walk; None if it is unknown.
        key: The key of the loop, if the cursor has other types; else empty.
    """

    retryable = False

    def __init__(self, message: str, *, code_version: str | None = None, key: str = "") -> None:
        super().__init__(message)
        self.code_version = code_version
        self.key = key


class LedgerDamaged(LonghaulError):
    """The ledger contradicts itself, because its rows were changed or deleted by hand."""

    retryable = False


class RunIdConflict(LonghaulError):
    """The run id belongs to an unfinished run of another job, or of this job with other arguments."""

    retryable = False

    def __init__(self, run_id: str, known: str, its_arguments: str, asked: str, arguments: str) -> None:
        super().__init__(
            f"run id {run_id!r} belongs to an unfinished run of {known} with arguments {its_arguments or 'unknown'}; "
            f"a run of {asked} with arguments {arguments or 'unknown'} needs another id"
        )


class BulkError(LonghaulError):
    """A bulk operation failed at one row.

    Attributes:
        row_index: index of the row in the given list, from 0; None if it is not known.
    """

    retryable = False

    def __init__(self, message: str, *, row_index: int | None = None) -> None:
        super().__init__(message)
        self.row_index = row_index


class LazyLoadError(LonghaulError):
    """An attribute access would have sent SQL from synchronous code."""

    retryable = False


class PoisonBatch(LonghaulError):
    """A batch ended its worker at every attempt. It is not run again.

    Attributes:
        keys: the keys of the batch, in order.
    """

    retryable = False

    def __init__(self, message: str, keys: Sequence[object]) -> None:
        super().__init__(message)
        self.keys = list(keys)


class HandFailed(LonghaulError):
    """A helper run of a walk with `parallel` failed for good. `worker retry` continues the walk."""

    retryable = False


class JobFailed(LonghaulError):
    """The job ended with an error. Raised by `Run.result()`."""

    retryable = False


class JobCancelled(LonghaulError):
    """An operator cancelled the run. Raised by `Run.result()`."""

    retryable = False


class ResultTooLarge(LonghaulError):
    """The job succeeded, but its result exceeds `worker.max_result_bytes` and was not stored."""

    retryable = False


class NonRetryableError(LonghaulError):
    """Raise this in a job if another attempt cannot succeed. The run becomes a dead letter."""

    retryable = False


class Retry(LonghaulError):
    """Raise this in a job to run it again. The attempt counts.

    Args:
        after: seconds to wait first; None for the backoff of the job or of the settings.
        message: the reason, for the log and the ledger.
    """

    def __init__(self, after: float | None = None, message: str = "the job asked to be run again") -> None:
        super().__init__(message)
        self.after = after


class Snooze(Retry):
    """Raise this in a job to run it again later, if something that it needs is not ready yet. No attempt is counted.

    Args:
        after: seconds to wait.
        message: the reason, for the log.
    """

    def __init__(self, after: float, message: str = "the job asked to be run later") -> None:
        super().__init__(after, message)


class ConnectionLost(LonghaulError):
    """A job lost a connection, of its batch or of its own, to a server that answers others."""


class StallTimeout(LonghaulError):
    """The run made no progress for too long. It was cancelled and is retried."""


class JobProcessDied(LonghaulError):
    """The subprocess of a job ended while the job ran, for example because it ran out of memory."""


class JobProcessError(LonghaulError):
    """A job in a subprocess raised an exception. `str()` of this error is its class and message.

    Args:
        type_name: qualified name of its class.
        message: its message.
        traceback: its traceback in the subprocess; shown with that of this error.
        type_names: `module.qualname` of its class and its bases; compared with `@job(do_not_retry=...)`.
        retryable: False if another attempt cannot succeed either.
    """

    def __init__(
        self, type_name: str, message: str, traceback: str, *, type_names: Sequence[str] = (), retryable: bool = True
    ) -> None:
        super().__init__(f"{type_name}: {message}" if message else type_name)
        self.type_name = type_name
        self.message = message
        self.traceback = traceback
        self.type_names = tuple(type_names)
        self.retryable = retryable
        self.add_note(f"Traceback of the subprocess:\n{traceback}")


class JobInterrupted(BaseException):
    """Raised inside a plain function, in a thread or a process, when it times out or is cancelled.

    Clean up, and let it pass. It is to a plain function what `asyncio.CancelledError` is to a coroutine.
    """


# --- Control flow of the worker, private


class AttemptExit(BaseException):
    """An attempt ends for a reason that is not a failure of the job."""


class AttemptReleased(AttemptExit):
    """The run goes back to the queue, and no attempt is counted.

    Attributes:
        reason: why: the worker drains, an operator has paused the run, the job sleeps, or other runs wait for its slot.
        delay_seconds: seconds until the run is due again.
    """

    def __init__(self, reason: Literal["drain", "pause", "sleep", "yield"], delay_seconds: float = 0.0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.delay_seconds = delay_seconds


class Cancelled(AttemptExit):
    """An operator cancelled the run."""


class FencedOut(AttemptExit):
    """Another worker has taken the run over. The open transaction of this worker is rolled back."""


class RangeLost(AttemptExit):
    """Another hand has taken a range of a shared walk over. The open batch is rolled back."""


class HandEnded(AttemptExit):
    """A helper run has nothing more to do in its walk: it ends, without the code after the loop."""


class AlreadyFinished(AttemptExit):
    """The ledger has the result of this run. The queue gets that result, and the job does not run again.

    Attributes:
        state: how the run ended.
        result: its result as JSON text.
        error: its error message.
    """

    def __init__(self, state: str, result: object, error: str | None) -> None:
        super().__init__(state)
        self.state = state
        self.result = result
        self.error = error


def iter_causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and the errors that it was raised from, the outermost first.

    SQLAlchemy keeps the driver's error in `orig`, which counts as a cause. `__context__` does not: an error that was
    raised while another one was handled is an error of its own.
    """
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        causes = (read_attribute(current, name) for name in ("orig", "__cause__"))
        current = next((cause for cause in causes if isinstance(cause, BaseException)), None)


def read_attribute(error: BaseException, name: str) -> object:
    """Return an attribute of an error; None if it has none, or if reading it raises, as a `__getattr__` can."""
    try:
        return getattr(error, name, None)
    except Exception:  # noqa: BLE001 - a class of the application
        return None


def format_error(error: BaseException) -> str:
    """Return an error as `Type: message` in one line, which UTF-8 can encode: a lone surrogate is escaped.

    Of an error of SQLAlchemy, return the driver's type and message: SQLAlchemy's own contains the whole statement.
    An exception whose `__str__` raises is described by its type alone.
    """
    cause = error
    original = read_attribute(error, "orig")
    if isinstance(original, BaseException):
        cause = original.__cause__ or original
    try:
        message = " ".join(str(cause).split())
    except Exception as failed:  # noqa: BLE001 - whatever the exception's own __str__ raises
        message = f"(its message cannot be read: {type(failed).__name__})"
    text = f"{type(cause).__name__}: {message}" if message else type(cause).__name__
    return text.encode(errors="backslashreplace").decode()
