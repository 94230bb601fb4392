"""Sends an array as the text of an array literal, which takes less time than the driver's binary form.

asyncpg asks of each element whether it is a container, and encodes it by a call. The text of all elements is made by
a few calls for the whole array, and the server reads it as fast as the binary form, within 0.03 µs an element: 1,000
integers take 0.25 ms instead of 0.42 ms from call to answer, 1,000 names 0.29 ms instead of 0.65 ms.

The format is that of "8.15.6. Array Input and Output Syntax" in PostgreSQL's documentation.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic_core import to_json
from sqlalchemy import Column

from worker.batch.bulk.eligibility import has_containers

#: Typecodes of `array.array` that hold the same integers as the type of the column.
_TYPECODES = {"SMALLINT[]": "h", "INTEGER[]": "i", "BIGINT[]": "q"}
_TEXTS = frozenset({"VARCHAR[]", "text[]", "character varying[]"})
#: Between two texts, and in place of None: characters that no text of PostgreSQL holds.
_NUL = "\x00"
_NULL = "\ud800"


def encode_arrays(
    casts: Mapping[Column[Any], str], arrays: Sequence[list[Any]], *, as_text: bool = True
) -> tuple[dict[Column[Any], str], list[Any]]:
    """Return the arrays of a statement's columns as its parameters.

    Args:
        casts: the columns with the types of their arrays, as `array_cast` returns them.
        arrays: for each column, the elements in the form that the driver takes.
        as_text: whether an array may be sent as text.

    Returns:
        The cast of each column's parameter, and the arguments: text and a literal for None and integers in the range of
        the type, or None and texts; else the given cast and array. Nothing if an element is a container.
    """
    encoded: dict[Column[Any], str] = {}
    arguments: list[Any] = []
    for (column, cast), values in zip(casts.items(), arrays, strict=True):
        types = set(map(type, values))
        if has_containers(types):
            return {}, []
        literal = _format_array(cast, values, types) if as_text else None
        encoded[column] = cast if literal is None else f"text::{cast}"
        arguments.append(values if literal is None else literal)
    return encoded, arguments


def _format_array(cast: str, values: list[Any], types: set[type]) -> str | None:
    """Return the literal of an array; None if the driver has to send it.

    The driver has to refuse an element that is refused at all: if the server does it, the transaction is lost.
    """
    others = types - {type(None)}
    if others == {int} and cast in _TYPECODES:
        return _format_integers(_TYPECODES[cast], values, has_nulls=others != types)
    if others == {str} and cast in _TEXTS:
        return _format_texts(values, values.count(None) if others != types else 0)
    return None


def _format_integers(typecode: str, values: list[int | None], *, has_nulls: bool) -> str | None:
    numbers: Any = [value for value in values if value is not None] if has_nulls else values
    try:
        array(typecode, numbers)
    except OverflowError:
        return None
    return f"{{{to_json(values)[1:-1].decode()}}}"  # JSON writes integers and null as an array literal does


def _format_texts(values: list[str | None], nulls: int) -> str | None:
    texts = [_NULL if value is None else value for value in values] if nulls else values
    joined = _NUL.join(texts)  # type: ignore[arg-type]
    if joined.count(_NUL) != len(values) - 1 or (nulls and joined.count(_NULL) != nulls):
        return None
    if "\\" in joined or '"' in joined:
        joined = joined.replace("\\", "\\\\").replace('"', '\\"')
    literal = '{"' + joined.replace(_NUL, '","') + '"}'
    return literal.replace(f'"{_NULL}"', "NULL") if nulls else literal
