"""Converts bytes of Redis to Python values, bounded in size and depth. All unreadable values raise the same error."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime
from typing import Any

from pydantic_core import from_json

from worker.errors import InvalidPayload

#: Largest payload, result or dead letter that is decoded unless the caller has a setting for it.
MAX_BYTES = 64 * 1024 * 1024
_OTHER_KEYS = re.compile(r"(worker:|arq:(job|in-progress|retry|result):|arq:abort$).*|.*:health-check", re.DOTALL)


#: The last second of a time: time zones and differences must not leave the range of `datetime`.
LAST_SECOND = 253_402_214_400.0  # 9999-12-31


def read_time(value: object) -> datetime | None:
    """Return a time that a client or worker wrote to Redis, aware and in UTC; None for any other value.

    Args:
        value: ISO 8601 text, read as UTC if it has no zone, or seconds since 1970.
    """
    seconds: float
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            seconds = (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()
        elif isinstance(value, int | float) and not isinstance(value, bool):
            seconds = float(value)
        else:
            return None
    except (ValueError, OverflowError):
        return None
    if not math.isfinite(seconds) or not 0 <= seconds < LAST_SECOND:
        return None
    return datetime.fromtimestamp(seconds, UTC)


def read_json(raw: bytes | str, what: str, *, max_bytes: int = MAX_BYTES) -> Any:
    """Return the value of a JSON text.

    The parser is written in Rust. It rejects a value that is nested more than 200 levels deep, an integer of more than
    4,300 digits, and half a surrogate pair, each of which would fail much later in Python, in Lua or in PostgreSQL.

    Args:
        raw: the text.
        what: name of the value for the error, for example `the payload`.
        max_bytes: longest text that is read.

    Raises:
        InvalidPayload: the text is too long, or is not JSON.
    """
    if len(raw) > max_bytes:
        raise InvalidPayload(f"{what} has {len(raw):,} bytes; the limit is {max_bytes:,}")
    try:
        return from_json(raw)
    except ValueError as error:
        raise InvalidPayload(f"{what} is not JSON: {error}") from None


def is_other_key(name: str) -> bool:
    """Return whether a name is that of another key of Redis than a queue: a run that is put there damages it."""
    return _OTHER_KEYS.fullmatch(name) is not None
