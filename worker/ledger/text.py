"""Makes texts and tracebacks storable in PostgreSQL."""

from __future__ import annotations

import json
import traceback
from typing import Any

from worker.errors import format_error

_TRACEBACK_CHARACTERS = 8_000


def storable(text: str | None) -> str | None:
    """Return a text with NUL and lone surrogates escaped: PostgreSQL stores neither."""
    return text.replace("\x00", "\\x00").encode(errors="backslashreplace").decode() if text else text


def storable_json(value: Any) -> str:
    """Return a value as JSON that jsonb can store, with NUL and lone surrogates in its texts escaped."""
    return json.dumps(_clean(value))


def _clean(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, dict):
        return {storable(str(key)): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value


def shorten_traceback(text: str | None) -> str | None:
    """Return the storable end of a traceback."""
    return storable(text[-_TRACEBACK_CHARACTERS:]) if text else text


def format_traceback(error: BaseException) -> str:
    """Return the traceback of an error with its causes; without them if one of them cannot be formatted.

    `traceback` reads attributes of each exception, which a class of the application may refuse.
    """
    try:
        return "".join(traceback.format_exception(error))
    except Exception:  # noqa: BLE001 - a class of the application
        return "".join(traceback.format_tb(error.__traceback__)) + format_error(error)


def loggable(error: BaseException) -> BaseException | None:
    """Return an error for `exc_info=` of the log; None if its traceback cannot be formatted: the line would be lost."""
    try:
        traceback.TracebackException.from_exception(error)
    except Exception:  # noqa: BLE001 - as above
        return None
    return error
