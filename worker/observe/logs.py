"""The log: text for people, or one JSON object per line with the fields of each message."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any

from worker.job.propagation import current_job, traceparent
from worker.settings import LogSettings

#: Messages are an event and `key=value`: each placeholder in the template is an argument, and may have a name.
_PLACEHOLDER = re.compile(r"(?:\b(\w+)=)?%(?:%|[-+ #0]*\d*(?:\.\d+)?[a-zA-Z])")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_OWN = frozenset({"at", "level", "logger", "message", "traceback", "traceparent"})


class JsonFormatter(logging.Formatter):
    """One JSON object per line: at, level, logger, message, the fields of the message (run, job, attempt, ...), extras.

    A field is never read from the text of another field: the template of the message defines the position of each.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        values: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if job := current_job.get():
            values["job"] = job
        if trace := traceparent.get():
            values["traceparent"] = trace
        values |= {name: value for name, value in _message_fields(record).items() if name not in _OWN}
        values |= {name: value for name, value in vars(record).items() if name not in _STANDARD | values.keys()}
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values, ensure_ascii=False, default=str).encode(errors="backslashreplace").decode()


def configure(settings: LogSettings) -> None:
    """Send the log to standard error, in the format and from the levels of the settings."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.format == "json":
        handler.setFormatter(JsonFormatter())
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


def _message_fields(record: logging.LogRecord) -> dict[str, Any]:
    """Return the arguments of a message that its template names, as in `run=%s`."""
    if not isinstance(record.args, tuple) or not isinstance(record.msg, str):
        return {}
    fields: dict[str, Any] = {}
    arguments = iter(record.args)
    for match in _PLACEHOLDER.finditer(record.msg):
        if match[0].endswith("%%"):
            continue
        value = next(arguments, None)
        if match[1]:
            fields[match[1]] = value if isinstance(value, int | float | None) else str(value)
    return fields
