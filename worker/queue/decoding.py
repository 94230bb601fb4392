"""Converts bytes of Redis to Python values, bounded in size and depth. All unreadable values raise the same error."""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json

from worker.errors import InvalidPayload

#: Largest payload, result or dead letter that is decoded unless the caller has a setting for it.
MAX_BYTES = 64 * 1024 * 1024


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
