"""Makes any value of a log record a JSON value of bounded size, which every parser reads."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

_SURROGATE = re.compile("[\ud800-\udfff]")
_MOST_LEVELS = 6
_MOST_ITEMS = 100
_LONGEST_NAME = 200
#: Larger numbers are written as text: a parser with 64 bits, or with floats, would change or reject them.
_LARGEST_NUMBER = 2**63
_MOST_BITS = 4_096


def plain_text(text: str, most: int, *, keeps_end: bool = False) -> str:
    """Return a text with lone surrogates escaped, and shortened to about `most` characters.

    Args:
        text: the text.
        most: the most characters, beside a note about the number of those that were left out.
        keeps_end: whether to leave out the middle: the end of a traceback says more than its beginning.
    """
    if len(text) > most:
        head = most // 4 if keeps_end else most
        tail = text[len(text) - (most - head) :] if keeps_end else ""
        text = f"{text[:head]}… ({len(text) - most} characters left out){tail}"
    if text.isascii():
        return text
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def plain_fields(fields: Mapping[str, Any], most: int) -> dict[str, Any]:
    """Return the fields of a record as JSON has them, without NaN, cycles, or keys that are no text.

    Objects become their text. One long value leaves room for the others.

    Args:
        fields: the values by name.
        most: the most characters of all texts, about; a single field has at most a quarter of them.
    """
    made: dict[str, Any] = {}
    for place, (name, value) in enumerate(fields.items()):
        if place >= _MOST_ITEMS or most <= 0:
            made["…"] = f"{len(fields) - place} left out"
            break
        shortener = _Shortener(min(most, most // 4 + _LONGEST_NAME))
        before = shortener.rest
        text = name if isinstance(name, str) else f"{type(name).__name__} {place}"  # logging accepts any key
        made[plain_text(text, _LONGEST_NAME)] = shortener.convert(value, _MOST_LEVELS)
        most -= before - shortener.rest + len(text)
    return made


class _Shortener:
    """Converts one value within a budget of characters.

    Attributes:
        rest: the characters that are left.
    """

    def __init__(self, most: int) -> None:
        self.rest = most

    def convert(self, value: Any, levels: int) -> Any:
        try:
            return self._convert(value, levels)
        except Exception as error:  # noqa: BLE001 - methods of the application's classes raise anything
            return f"<{type(value).__name__}: cannot be written: {type(error).__name__}>"

    def _convert(self, value: Any, levels: int) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int):
            return _plain_integer(int(value))
        if isinstance(value, float):
            return float(value) if math.isfinite(value) else str(float(value))
        if isinstance(value, str):
            return self._take(str.__str__(value))
        if isinstance(value, Mapping | list | tuple | set | frozenset):
            if levels == 0 or self.rest <= 0:
                return f"<{type(value).__name__} of {len(value)}>"
            if isinstance(value, Mapping):
                return self._convert_mapping(value, levels)
            return self._convert_items(value, levels)
        return self._take(str(value))

    def _convert_mapping(self, value: Mapping[Any, Any], levels: int) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for place, (name, one) in enumerate(value.items()):
            if place >= _MOST_ITEMS or self.rest <= 0:
                made["…"] = f"{len(value) - place} left out"
                break
            text = plain_text(str(name), _LONGEST_NAME)
            self.rest -= len(text)
            made[text] = self.convert(one, levels - 1)
        return made

    def _convert_items(self, value: Any, levels: int) -> list[Any]:
        made: list[Any] = []
        for place, one in enumerate(value):
            if place >= _MOST_ITEMS or self.rest <= 0:
                made.append(f"… {len(value) - place} left out")
                break
            self.rest -= 1
            made.append(self.convert(one, levels - 1))
        return made

    def _take(self, text: str) -> str:
        text = plain_text(text, max(self.rest, 0))
        self.rest -= len(text)
        return text


def _plain_integer(value: int) -> int | str:
    if -_LARGEST_NUMBER <= value < _LARGEST_NUMBER:
        return value
    return str(value) if value.bit_length() <= _MOST_BITS else f"<int of {value.bit_length()} bits>"
