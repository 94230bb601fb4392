"""Every error that Longhaul raises: one tree, each with its meaning as docstring."""

from __future__ import annotations

from collections.abc import Sequence


class LonghaulError(Exception):
    """Root of all errors of this package."""

    #: False for errors that another try cannot cure.
    retryable = True


class SettingsError(LonghaulError):
    """A setting is unknown, of the wrong type, or contradicts another one."""

    retryable = False


class RegistrationError(LonghaulError):
    """A job is defined twice, or in a way that cannot work."""

    retryable = False


class UnknownJob(LonghaulError):
    """No job of that name is registered."""

    retryable = False


class InvalidArguments(LonghaulError):
    """The arguments do not fit the job's signature."""

    retryable = False


class InvalidPayload(LonghaulError):
    """What lies in the queue is not a job that this worker can read."""

    retryable = False


class DatabaseNotMigrated(LonghaulError):
    """The schema `worker` is missing or older than this worker."""

    retryable = False


class ServerUnavailable(LonghaulError):
    """PostgreSQL or Redis does not answer, or refuses us."""


class UsageError(LonghaulError):
    """The job's code does what cannot work: another try would do the same."""

    retryable = False


class UnsupportedStatement(LonghaulError):
    """A statement cannot be walked; the message gives the reason and the cure."""

    retryable = False


class CursorMismatch(LonghaulError):
    """The cursor in the ledger does not belong to the statement that the job has now."""

    retryable = False


class RunIdConflict(LonghaulError):
    """The ledger has an unfinished run of another job, or with other arguments, under this run's id."""

    retryable = False

    def __init__(self, run_id: str, known: str, its_arguments: str, asked: str, arguments: str) -> None:
        super().__init__(
            f"run id {run_id!r} is that of an unfinished run of {known} with arguments {its_arguments or 'unknown'}; "
            f"{asked} with arguments {arguments or 'unknown'} cannot have it too: give it another id"
        )


class BulkError(LonghaulError):
    """A bulk operation failed at one row.

    Attributes:
        row_index: position of the row in the list that was given, from 0; None when it is not known.
    """

    retryable = False

    def __init__(self, message: str, *, row_index: int | None = None) -> None:
        super().__init__(message)
        self.row_index = row_index


class LazyLoadError(LonghaulError):
    """An attribute would have sent SQL from synchronous code."""

    retryable = False


class PoisonBatch(LonghaulError):
    """A batch ended its worker at every try; it is not run again.

    Attributes:
        keys: the keys of the batch, in order.
    """

    retryable = False

    def __init__(self, message: str, keys: Sequence[object]) -> None:
        super().__init__(message)
        self.keys = list(keys)


class JobFailed(LonghaulError):
    """The job ended with an error; raised by `Run.result()`."""

    retryable = False


class JobCancelled(LonghaulError):
    """The run was cancelled by order; raised by `Run.result()`."""

    retryable = False


class ResultTooLarge(LonghaulError):
    """The job succeeded, but what it returned is over `worker.max_result_bytes` and was not kept."""

    retryable = False


class NonRetryableError(LonghaulError):
    """Raise this in a job for an error that another try cannot cure."""

    retryable = False


class Retry(LonghaulError):
    """Raise this in a job to be run again.

    Args:
        after: seconds to wait first; None for the backoff of the settings.
        message: reason, for log and ledger.
    """

    def __init__(self, after: float | None = None, message: str = "the job asked to be run again") -> None:
        super().__init__(message)
        self.after = after


class Snooze(Retry):
    """Raise this in a job to be run again later, at the cost of no try: what it waits for is not there yet.

    Args:
        after: seconds to wait.
        message: what it waits for, for the log.
    """

    def __init__(self, after: float, message: str = "the job asked to be run later") -> None:
        super().__init__(after, message)


class StallTimeout(LonghaulError):
    """The run has made no progress for too long, and was cancelled to be tried again."""


class JobProcessDied(LonghaulError):
    """The process of a job (`@job(process=True)`) ended in the middle of it, e.g. for want of memory."""


class JobInterrupted(BaseException):
    """Raised inside of a plain function, in a thread or a process, whose time is over, or that is cancelled: clean up,
    and let it pass. What `asyncio.CancelledError` is to an async function.
    """


class AttemptExit(BaseException):
    """A run leaves its worker for a reason that is not a failure of the job.

    Not an `Exception`, so that a job's own `except Exception` lets it pass.
    """


class AttemptReleased(AttemptExit):
    """The worker stops, or the run is paused: it goes back to the queue, at no cost."""


class Cancelled(AttemptExit):
    """An operator cancelled the run."""


class FencedOut(AttemptExit):
    """Another worker has taken the run over: whatever this one still holds is rolled back."""


class AlreadyFinished(AttemptExit):
    """The ledger knows that this run has ended: its answer is given again instead of running it.

    Attributes:
        state: how it ended.
        result: what it returned.
        error: what it failed with.
    """

    def __init__(self, state: str, result: object, error: str | None) -> None:
        super().__init__(state)
        self.state = state
        self.result = result
        self.error = error
