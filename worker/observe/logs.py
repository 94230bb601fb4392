"""The log: text for people, or one JSON object per line with the fields of each message."""

from __future__ import annotations

import json
import logging
import re
import sys
from typing import Any

from worker.attempt.process_protocol import message_of
from worker.job.propagation import current_trace
from worker.observe.json_values import plain_fields, plain_text
from worker.observe.log_fields import RUN_FIELDS, exception_of, extra_fields, message_fields, run_fields
from worker.observe.mirror_entry import format_time
from worker.settings import LogSettings

#: The fields that no `extra` and no message can set: a log store filters by them.
_RESERVED = frozenset(
    {"time", "level", "logger", "message", "worker", *RUN_FIELDS, "trace_id", "span_id", "exception", "extra"}
)
_MESSAGE_CHARACTERS = 16_000
_EXCEPTION_CHARACTERS = 32_000
_EXTRA_CHARACTERS = 16_000
#: Control characters and line separators that JSON allows in a text, and that terminals and line readers obey.
_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029]")


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, worker, the fields of the run, and further fields.

    The fields of the run are those of the attempt in whose context the line is written: run, job, attempt, step, helps
    and trace_id. Fields of the message (`rows=%d`) and of `extra` follow. One whose name is taken is in the object
    `extra` instead, so code of a job cannot pass for another run. A line is valid JSON of bounded size, whatever its
    values are.

    Args:
        worker: name of the worker; empty for none.
    """

    def __init__(self, worker: str = "") -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        values: dict[str, Any] = {
            "time": format_time(record.created),
            "level": record.levelname,
            "logger": plain_text(record.name, _EXTRA_CHARACTERS),
            "message": plain_text(message_of(record), _MESSAGE_CHARACTERS),
        }
        if self._worker:
            values["worker"] = self._worker
        run = run_fields(record)
        values |= plain_fields(run, _EXTRA_CHARACTERS)
        if trace := current_trace():
            values.setdefault("trace_id", trace[0])
            values["span_id"] = trace[1]
        given = message_fields(record) | extra_fields(record)
        given = {
            name: value for name, value in given.items() if name not in RUN_FIELDS or not _is(value, run.get(name))
        }
        more = plain_fields(given, _EXTRA_CHARACTERS)
        values |= {name: value for name, value in more.items() if name not in _RESERVED}
        taken = {name: value for name, value in more.items() if name in _RESERVED and values.get(name) != value}
        if taken:
            values["extra"] = taken
        if exception := exception_of(record):
            values["exception"] = plain_text(exception, _EXCEPTION_CHARACTERS, keeps_end=True)
        if record.stack_info:  # no `extra` can have this name
            values["stack_info"] = plain_text(record.stack_info, _EXCEPTION_CHARACTERS, keeps_end=True)
        text = json.dumps(values, ensure_ascii=False, allow_nan=False)
        return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _is(value: Any, known: Any) -> bool:
    """Return whether a value is a known text or number; its class, which is the application's, is not asked."""
    return type(value) is type(known) and isinstance(known, str | int) and value == known


def configure(settings: LogSettings, *, worker: str = "") -> None:
    """Send the log to standard error, in the format and from the levels of the settings.

    Args:
        settings: the section `log`.
        worker: name of the worker, for the JSON format.
    """
    handler = logging.StreamHandler(sys.stderr)
    if settings.format == "json":
        handler.setFormatter(JsonFormatter(worker))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level)
    # Their messages about each statement and connection are for DEBUG only.
    for name in ("alembic", "asyncio", "arq"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
    for name, level in settings.levels.items():
        logging.getLogger(name).setLevel(level)
