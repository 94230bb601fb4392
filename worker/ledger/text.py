"""Text as PostgreSQL can store it."""

from __future__ import annotations

import json
from typing import Any

_TRACEBACK_CHARACTERS = 8_000


def storable(text: str | None) -> str | None:
    """Return a text with NUL and lone surrogates escaped: PostgreSQL stores neither."""
    return text.replace("\x00", "\\x00").encode(errors="backslashreplace").decode() if text else text


def storable_json(value: Any) -> str:
    """Return a value as JSON with NUL escaped: jsonb cannot store it."""
    return json.dumps(value).replace("\\u0000", "\\\\x00")


def shorten_traceback(text: str | None) -> str | None:
    """Return the storable end of a traceback."""
    return storable(text[-_TRACEBACK_CHARACTERS:]) if text else text
