"""What comes back from another process, as JSON: exceptions and lines of the log. Both sides of it stand here."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from typing import Any

from worker.errors import JobInterrupted, LonghaulError

logger = logging.getLogger("longhaul.processes")


class RemoteTraceback(Exception):
    """The traceback of another process, as the cause of the exception that came from there."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def describe_error(error: BaseException) -> dict[str, Any]:
    """Return an exception as JSON values: its classes, what it was made from, and how it reads."""
    kinds = [kind for kind in type(error).__mro__ if issubclass(kind, BaseException) and kind is not BaseException]
    return {
        "kinds": [_name(kind) for kind in kinds],
        "args": [arg if _is_plain(arg) else str(arg) for arg in error.args],
        "state": {name: value for name, value in vars(error).items() if _is_plain(value)},
        "text": str(error),
        "traceback": "".join(traceback.format_exception(error)),
    }


def error_of(described: dict[str, Any]) -> BaseException:
    """Return the exception again, as one of its class, or of the nearest that this process has: it is judged as there.

    Nothing is imported, and no constructor of a job's author is run: a class is one that his module has brought along.
    """
    kinds = [kind for kind in map(_class, described["kinds"]) if kind is not None]
    if kinds and kinds[0] is JobInterrupted:
        return JobInterrupted()
    made = (_made(kind, described, exact=described["kinds"][0] == _name(kind)) for kind in kinds)
    error = next((one for one in made if one is not None), None) or LonghaulError(described["text"])
    error.__cause__ = RemoteTraceback(described["traceback"])
    return error


def _made(kind: type[BaseException], described: dict[str, Any], *, exact: bool) -> BaseException | None:
    """Return an exception of a class, which reads as the described one; None where there can be none."""
    text = described["text"]
    try:
        error = kind.__new__(kind, *described["args"])
        error.__dict__.update(described["state"])
        if exact and str(error) == text:
            return error
    except Exception:  # noqa: BLE001 - a class of somebody's own raises anything
        logger.debug("an exception of %s is made in another way", kind)
    try:
        name = described["kinds"][0].rpartition(".")[2].rpartition(":")[2]
        like = type(name, (kind,), {"__module__": kind.__module__, "__str__": lambda self: text})
        error = kind.__new__(like, text)
        error.__dict__.update(described["state"])
    except Exception:  # noqa: BLE001 - as above; or no class may be derived from it
        return None
    return error


def _name(kind: type[BaseException]) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _class(name: str) -> type[BaseException] | None:
    module, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) and issubclass(found, BaseException) else None


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def describe_record(record: logging.LogRecord) -> dict[str, Any]:
    """Return a line of the log as JSON values, its message made."""
    values = {
        "name": record.name,
        "levelno": record.levelno,
        "levelname": record.levelname,
        "msg": record.getMessage(),
        "created": record.created,
        "pathname": record.pathname,
        "filename": record.filename,
        "module": record.module,
        "lineno": record.lineno,
        "funcName": record.funcName,
        "process": record.process,
        "processName": "job",
        "threadName": record.threadName,
    }
    if record.exc_info and record.exc_info[1] is not None:
        values["exc_text"] = "".join(traceback.format_exception(record.exc_info[1])).rstrip()
    return values


def handle_record(values: dict[str, Any]) -> None:
    """Put a line of another process into this one's log, where that wants it."""
    logger = logging.getLogger(values["name"])
    if logger.isEnabledFor(values["levelno"]):
        logger.handle(logging.makeLogRecord(values))
