"""The log: text for people, or one JSON object per line with the fields of each message."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime
from typing import Any

from worker.attempt.process_protocol import STANDARD_FIELDS
from worker.job.propagation import current_attempt, current_job, traceparent
from worker.settings import LogSettings

#: Messages are an event and `key=value`: each placeholder in the template is an argument, and may have a name.
_PLACEHOLDER = re.compile(r"(?:\b(\w+)=)?%(?:%|[-+ #0]*\d*(?:\.\d+)?[a-zA-Z])")
_OWN = frozenset({"at", "level", "logger", "message", "traceback", "traceparent"})


class JsonFormatter(logging.Formatter):
    """One JSON object per line: at, level, logger, message, worker, run, job, attempt, step, and further fields.

    Run, job, attempt and step are those of the attempt in whose context the line is written. A field of the message
    (`run=%s`) or of `extra` overrides them, because the line may be about another run. A field is never read from the
    text of another field: the template of the message defines the position of each.

    Args:
        worker: name of the worker; empty for none.
    """

    def __init__(self, worker: str = "") -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record."""
        values: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if self._worker:
            values["worker"] = self._worker
        if job := current_job.get():
            values["job"] = job
        if (attempt := current_attempt.get()) is not None:
            values |= attempt.as_extra()
        if trace := traceparent.get():
            values["traceparent"] = trace
        values |= {name: value for name, value in vars(record).items() if name not in STANDARD_FIELDS | _OWN}
        values |= {name: value for name, value in _message_fields(record).items() if name not in _OWN}
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        elif record.exc_text:  # a record of a subprocess
            values["traceback"] = record.exc_text
        return _dump(values).encode(errors="backslashreplace").decode()


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


def _dump(values: dict[str, Any]) -> str:
    """Return the fields as JSON. A value that JSON cannot hold is written as text, so that the line is not lost."""
    try:
        return json.dumps(values, ensure_ascii=False, allow_nan=False, default=str)
    except Exception:  # noqa: BLE001 - NaN, a cycle, a key that is no text, or a `__str__` that raises
        return json.dumps({str(name): _printed(value) for name, value in values.items()}, ensure_ascii=False)


def _printed(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | str):
        return value
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001 - as above
        return f"<{type(value).__name__}: its repr raises {type(error).__name__}>"


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
