"""Filters of the templates: texts, numbers, durations and commands.

Texts come from jobs, files and other services, and are hostile. `show` makes visible what hides in one; the templates
apply it to whatever they print.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup, escape

from worker.queue.key_problems import quote
from worker.web.fields import read_moment

_KEPT = "\n\t"
_MOST_MARKS = 4
_LONGEST = 4_000
_PLAIN = re.compile(r"[\x20-\x7e\n\t]*")
_CODE = re.compile(r"``?([^`\n]+)``?")
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
_SCALES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def show(text: str) -> str:
    r"""Return a text with each character that cannot be seen, or that turns the direction of others, as `\x1b`.

    These are control characters (ANSI), formats (bidi controls, zero widths), and separators but the space.

    Only the first combining marks of a letter are kept: a hundred of them would cover the lines above.
    """
    if _PLAIN.fullmatch(text):
        return text
    found: list[str] = []
    marks = 0
    for letter in text:
        marks = marks + 1 if unicodedata.category(letter) in ("Mn", "Me") else 0
        if letter not in _KEPT and not letter.isprintable():
            found.append(_escape(letter))
        elif marks <= _MOST_MARKS:
            found.append(letter)
    return "".join(found)


def _escape(letter: str) -> str:
    code = ord(letter)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def finalize(value: Any) -> Any:
    """Return what a template prints for a value: nothing for None, and every text as `show` makes it."""
    if value is None:
        return ""
    if isinstance(value, Markup):
        return value
    return show(value if isinstance(value, str) else str(value))


def exact(text: str) -> Markup:
    """Return the text of a field as it is, escaped for HTML: what the field sends must be what was given."""
    return escape(text)


def clip(text: str, most: int = _LONGEST) -> str:
    """Return the beginning of a long text, and how long it is."""
    return text if len(text) <= most else f"{text[:most]} … ({len(text):,} characters; the API has all of them)"


def sentence(text: str) -> str:
    """Return a text of an error with a full stop, which keeps it apart from what follows."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


def prose(text: str) -> Markup:
    """Return a docstring's text as HTML: what stands in backticks is code."""
    parts = [show(one) for one in _CODE.split(text)]
    code = Markup("<code>{}</code>")
    return Markup("").join(code.format(one) if at % 2 else escape(one) for at, one in enumerate(parts))


def pretty(value: Any) -> str:
    """Return a JSON value as text, indented if it is long."""
    if isinstance(value, str):
        return value
    short = json.dumps(value, ensure_ascii=False)
    return short if len(short) <= 60 else json.dumps(value, ensure_ascii=False, indent=2)


def number(value: float | None) -> str:
    """Return a number with separators: `12,345`; one decimal below ten if it is not whole."""
    if value is None:
        return "–"
    if value != int(value) and abs(value) < 10:
        return f"{value:.1f}"
    return f"{value:,.0f}"


def counted(value: float | None, one: str, more: str) -> str:
    """Return a number with the words for one or for more of something: `1 run waits`, `2 runs wait`."""
    return f"{number(value)} {one if value == 1 else more}"


def compact(value: float | None) -> str:
    """Return a number in at most four digits: `12.3k`."""
    if value is None:
        return "–"
    for scale, unit in _SCALES:
        if abs(value) >= scale * 10 or (abs(value) >= scale and scale >= 1e6):
            return f"{value / scale:.1f}{unit}" if abs(value) < 100 * scale else f"{value / scale:.0f}{unit}"
    return number(value)


def memory(value: float | None) -> str:
    """Return a number of bytes: `143 MB`."""
    return "–" if value is None else f"{value / 1e9:.1f} GB" if value >= 1e9 else f"{value / 1e6:.0f} MB"


def percent(value: float | None) -> str:
    """Return a share of 0 to 100 as text. It is 100 only if it is reached."""
    return "–" if value is None else f"{math.floor(value * 10) / 10:.1f} %"


def duration(seconds: float | None) -> str:
    """Return a time span in its two largest units: `3 h 20 min`."""
    if seconds is None:
        return "–"
    if seconds < 0.001:
        return "under 1 ms"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    rest, parts = round(seconds), []
    for size, unit in _UNITS:
        if rest >= size:
            parts.append(f"{rest // size} {unit}")
            rest %= size
    return " ".join(parts[:2])


def rough(seconds: float | None) -> str:
    """Return an estimated time span: `41 min`, `2.4 h`. More digits would promise more than is known."""
    if seconds is None:
        return "–"
    for size, unit, least in ((86_400, "d", 172_800), (3_600, "h", 3_600), (60, "min", 60)):
        if seconds >= least:
            return (
                f"{seconds / size:.1f} {unit}"
                if unit != "min" and seconds < 10 * size
                else f"{seconds / size:.0f} {unit}"
            )
    return f"{math.ceil(seconds)} s"


def ago(moment: datetime, now: datetime | None = None) -> str:
    """Return how far a time is: `3 min ago`, `in 2 h`. The script of the page counts on in the same words."""
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    size, unit = next(((size, unit) for size, unit in _UNITS if abs(seconds) >= size), (1, "s"))
    count = math.floor(abs(seconds) / size)
    if count == 0:
        return "now"
    return f"{count} {unit} ago" if seconds > 0 else f"in {count} {unit}"


def clock(moment: datetime) -> str:
    """Return a time in UTC, without the date if it is today."""
    there = moment.astimezone(UTC)
    is_today = there.date() == datetime.now(UTC).date()
    return there.strftime("%H:%M:%S" if is_today else "%d %b %Y %H:%M")


def command(*words: Any) -> str:
    """Return a command line of words. What cannot be seen in one is written as an escape, which the shell reads."""
    return " ".join(quote(str(word)) for word in words)


def mark(text: str) -> str:
    """Return a short mark of a text that can be part of an id."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:10]


FILTERS = {
    "ago": ago,
    "bytes": memory,
    "clip": clip,
    "clock": clock,
    "compact": compact,
    "counted": counted,
    "duration": duration,
    "exact": exact,
    "mark": mark,
    "moment_of": read_moment,
    "number": number,
    "percent": percent,
    "pretty": pretty,
    "prose": prose,
    "rough": rough,
    "sentence": sentence,
}
