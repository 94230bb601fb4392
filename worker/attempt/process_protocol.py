"""Exceptions and log records as JSON values: encoding in a subprocess, and decoding in the worker."""

from __future__ import annotations

import contextvars
import logging
import traceback
from typing import Any

from worker.errors import JobInterrupted, JobProcessError, NonRetryableError, Retry, Snooze, read_attribute
from worker.job.propagation import RECORD_ATTEMPT, AttemptFields, current_attempt

#: Attributes of log records; others come from `extra`.
STANDARD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", RECORD_ATTEMPT}


def describe_error(error: BaseException) -> dict[str, Any]:
    """Return an exception as JSON values."""
    kinds = [kind for kind in type(error).__mro__ if issubclass(kind, BaseException)]
    described: dict[str, Any] = {
        "type": type(error).__qualname__,
        "types": [f"{kind.__module__}.{kind.__qualname__}" for kind in kinds],
        "message": _message(error),
        "traceback": _format(error),
        "retryable": read_attribute(error, "retryable") is not False,
    }
    if isinstance(error, Retry):
        described["retry"] = {"after": error.after, "snooze": isinstance(error, Snooze)}
    return described


def make_error(described: dict[str, Any]) -> BaseException:
    """Return the exception that stands for a described one in the worker.

    No class of the job's author is looked up, and none of its constructors runs.

    Returns:
        `JobInterrupted`, `Retry` and `Snooze` for these classes and classes derived from them, `NonRetryableError` for
        an exception that would end the worker, and `JobProcessError` for all others.
    """
    error: BaseException
    message, types = described["message"], described["types"]
    retry = described.get("retry")
    if "worker.errors.JobInterrupted" in types:
        return JobInterrupted()
    if retry is not None:
        after = retry["after"]
        error = Snooze(after or 0.0, message) if retry["snooze"] else Retry(after, message)
        error.add_note(f"Traceback of the subprocess:\n{described['traceback']}")
        return error
    if "builtins.SystemExit" in types or "builtins.KeyboardInterrupt" in types:
        error = NonRetryableError(f"the job raised {described['type']}, which would end its process")
        error.add_note(f"Traceback of the subprocess:\n{described['traceback']}")
        return error
    return JobProcessError(
        described["type"], message, described["traceback"], type_names=types, retryable=described["retryable"]
    )


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as failed:  # noqa: BLE001 - `__str__` of a job's own class may raise anything
        return f"<its __str__ raised {type(failed).__name__}>"


def _format(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error)).rstrip()
    except Exception as failed:  # noqa: BLE001 - as above
        return f"<its traceback cannot be formatted: {type(failed).__name__}>"


def message_of(record: logging.LogRecord) -> str:
    """Return the text of a message; the template and an error if its arguments do not fit."""
    try:
        return record.getMessage()
    except Exception as error:  # noqa: BLE001 - a wrong template, or a `__str__` that raises
        template = repr(record.msg) if isinstance(record.msg, str) else f"<{type(record.msg).__name__}>"
        return f"{template} cannot be formatted: {type(error).__name__}"


def describe_record(record: logging.LogRecord) -> dict[str, Any]:
    """Return a log record as JSON values, with its message formatted, its attempt and its `extra`."""
    attempt = find_attempt(record)
    values = {
        **{name: _plain(value) for name, value in vars(record).items() if name not in STANDARD_FIELDS},
        "name": record.name,
        "levelno": record.levelno,
        "levelname": record.levelname,
        "msg": message_of(record),
        "created": record.created,
        "pathname": record.pathname,
        "filename": record.filename,
        "module": record.module,
        "lineno": record.lineno,
        "funcName": record.funcName,
        "process": record.process,
        "processName": "job",
        "threadName": record.threadName,
        "stack_info": record.stack_info,
    }
    if attempt is not None:
        values[RECORD_ATTEMPT] = attempt.as_extra()
    if record.exc_info and record.exc_info[1] is not None:
        values["exc_text"] = "".join(traceback.format_exception(record.exc_info[1])).rstrip()
    return values


def find_attempt(record: logging.LogRecord) -> AttemptFields | None:
    """Return the attempt that a record belongs to: the one that it names, or that of this context."""
    named = getattr(record, RECORD_ATTEMPT, None)
    return named if isinstance(named, AttemptFields) else current_attempt.get()


def _plain(value: Any) -> Any:
    """Return a value of `extra` as JSON has it; the text of any other object."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    try:
        return str(value)
    except Exception as failed:  # noqa: BLE001 - the object's class is the job's
        return f"<its text cannot be formatted: {type(failed).__name__}>"


def handle_record(values: dict[str, Any]) -> None:
    """Log a record of a subprocess in this process, if the level of its logger admits it."""
    logger = logging.getLogger(values["name"])
    if RECORD_ATTEMPT in values:
        values = {**values, RECORD_ATTEMPT: AttemptFields(**values[RECORD_ATTEMPT])}
    if logger.isEnabledFor(values["levelno"]):
        # In a context of its own: the caller's may be that of another job.
        contextvars.Context().run(logger.handle, logging.makeLogRecord(values))
