"""The fields of a log record: those of its message, of its run, and of `extra`."""

from __future__ import annotations

import logging
import re
from typing import Any

from worker.attempt.process_protocol import STANDARD_FIELDS, find_attempt
from worker.ledger.text import format_traceback

#: Messages are an event and `key=value`: each placeholder in the template is an argument, and may have a name.
_PLACEHOLDER = re.compile(r"(?:\b(\w+)=)?%(?:%|[-+ #0]*\d*(?:\.\d+)?[a-zA-Z])")
#: The logger of a worker with arq's arguments, for lines in arq's form.
_ARQ_LOGGER = "arq.worker"
#: The fields of an attempt.
RUN_FIELDS = ("run", "job", "attempt", "step", "helps", "trace_id")


def is_own(record: logging.LogRecord) -> bool:
    """Return whether the worker itself has logged a record, not the code of a job."""
    return record.name.startswith("longhaul.") or record.name == _ARQ_LOGGER


def message_fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return the arguments of a message that its template names, as in `run=%s`.

    A field is never read from the text of another field: the template defines the position of each.
    """
    if not isinstance(record.args, tuple) or not isinstance(record.msg, str):
        return {}
    fields: dict[str, Any] = {}
    arguments = iter(record.args)
    for match in _PLACEHOLDER.finditer(record.msg):
        if match[0].endswith("%%"):
            continue
        value = next(arguments, None)
        if match[1]:
            fields[match[1]] = value if isinstance(value, int | float | None) else _text_of(value)
    return fields


def _text_of(value: object) -> str:
    try:
        return str(value)
    except Exception as error:  # noqa: BLE001 - methods of the application's classes raise anything
        return f"<{type(value).__name__}: cannot be written: {type(error).__name__}>"


def extra_fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return the fields of `extra`."""
    return {name: value for name, value in vars(record).items() if name not in STANDARD_FIELDS}


def run_fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return run, job, attempt, step, helped run and trace of a record; nothing outside of a run.

    They are those of the attempt that the record belongs to. A line of the worker itself may be about another run: then
    they are those that the line names. Code of a job cannot set them.
    """
    attempt = find_attempt(record)
    fields = {} if attempt is None else attempt.as_extra()
    if is_own(record):
        given = vars(record) | message_fields(record)
        named = {name: given[name] for name in RUN_FIELDS if given.get(name) is not None}
        if "run" in named and named["run"] != fields.get("run"):
            fields = {}
        fields |= named
    return fields


def exception_of(record: logging.LogRecord) -> str:
    """Return the traceback of a record; empty if it has no exception."""
    error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    return record.exc_text or "" if error is None else format_traceback(error).rstrip()
