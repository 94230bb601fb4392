"""Types of the API's fields. What comes from Redis or from PostgreSQL is hostile, and made safe here."""

from __future__ import annotations

import base64
import json
import math
from datetime import datetime
from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field

from worker.queue.decoding import read_time
from worker.queue.payload import LONGEST_ID
from worker.web.problems import Problem

T = TypeVar("T")

_MOST_LEVELS = 200
_LONGEST_CURSOR = 2_000
_LARGEST_NUMBER = 1e18


def clean_text(value: Any) -> Any:
    """Return a text that UTF-8 can encode: lone surrogates are escaped."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def clean_json(value: Any, levels: int = _MOST_LEVELS) -> Any:
    """Return a JSON value that can be written as JSON. What is nested too deep, or is no JSON, becomes text."""
    if isinstance(value, str):
        return clean_text(value)
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if levels == 0 or not isinstance(value, dict | list | tuple):
        return clean_text(str(value)[:1_000])
    if isinstance(value, dict):
        return {clean_text(str(name)): clean_json(one, levels - 1) for name, one in value.items()}
    return [clean_json(one, levels - 1) for one in value]


def read_number(text: Any) -> float | None:
    """Return a number of a text of Redis, with which one can calculate; None for anything else."""
    value = _read_float(text)
    return value if value is not None and abs(value) <= _LARGEST_NUMBER else None


def _read_float(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def read_count(text: Any) -> int | None:
    """Return a whole number of a text of Redis, from 0; None for anything else."""
    value = read_number(text)
    return None if value is None or not 0 <= value < 2**63 else int(value)


def read_moment(value: Any) -> datetime | None:
    """Return an aware time of a text of Redis; None for anything else."""
    return value if isinstance(value, datetime) else read_time(value)


def _check_printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it has characters that are not printable")
    return text


def _check_years(moment: datetime) -> datetime:
    if not 1970 <= moment.year <= 9000 or moment.timestamp() < 0:  # in UTC, another year may be out of range
        raise ValueError("it is not between 1970 and 9000")
    return moment


def _reject_number(value: Any) -> Any:
    if isinstance(value, str) and _read_float(value) is None:
        return value
    if isinstance(value, datetime):
        return value
    raise ValueError("write a time such as 2027-01-31T12:00:00Z")


#: A text of any writer, escaped so that UTF-8 can encode it.
Text = Annotated[str, BeforeValidator(clean_text)]
#: A JSON value of any writer.
Json = Annotated[Any, BeforeValidator(clean_json)]
#: A name that a caller sends: of a run, a job, a queue or a worker.
Name = Annotated[str, Field(min_length=1, max_length=LONGEST_ID), AfterValidator(_check_printable)]
#: A time that a caller sends, with a time zone.
#: A model that is strict takes no text behind a validator, although JSON has no other form of a time.
Moment = Annotated[AwareDatetime, Field(strict=False), BeforeValidator(_reject_number), AfterValidator(_check_years)]


class View(BaseModel):
    """A part of a response."""

    model_config = ConfigDict(frozen=True)


class Body(BaseModel):
    """The body of a request: no unknown field, and no value of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Query(BaseModel):
    """The query of a request: no unknown parameter."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PageQuery(Query):
    """The part of a list that is asked for."""

    limit: int = Field(default=50, ge=1, le=500, description="Most entries.")
    cursor: str | None = Field(
        None, max_length=_LONGEST_CURSOR, description="`next_cursor` of the page before; none for the first page."
    )


class Page(View, Generic[T]):
    """A page of a list."""

    items: list[T]
    next_cursor: Text | None = Field(default=None, description="Cursor of the next page; null after the last one.")


def make_cursor(*parts: str | int | float) -> str:
    """Return the cursor of a place in a list."""
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


def read_cursor(cursor: str | None, *kinds: type) -> tuple[Any, ...] | None:
    """Return the place that a cursor stands for; None for the first page.

    Args:
        cursor: the cursor of a request.
        kinds: the types of its parts.

    Raises:
        Problem: this API did not make the cursor.
    """
    if cursor is None:
        return None
    try:
        parts = json.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True))
        if isinstance(parts, list) and [type(part) for part in parts] == list(kinds) and not _has_odd_text(parts):
            return tuple(parts)
    except (ValueError, RecursionError):
        pass
    raise invalid_cursor()


def invalid_cursor() -> Problem:
    """Return the problem of a cursor that this API did not make."""
    return Problem(422, "invalid-cursor", "query.cursor: take next_cursor of the page before, as it is")


def _has_odd_text(parts: list[Any]) -> bool:
    return any(isinstance(part, str) and ("\x00" in part or clean_text(part) != part) for part in parts) or any(
        isinstance(part, float) and math.isnan(part) for part in parts
    )
