"""Formats numbers, durations and texts for narrow tables."""

from __future__ import annotations

_EIGHTHS = " ▏▎▍▌▋▊▉"
_SPARKS = "▁▂▃▄▅▆▇█"


def duration(seconds: float | None) -> str:
    """Return `8 s`, `12 min`, `3 h 20 min` or `2 d 4 h`; an empty text for None."""
    if seconds is None:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 36:
        return f"{hours} h {minutes} min"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h"


def number(value: float | None) -> str:
    """Return `90,000`; an empty text for None."""
    return "" if value is None else f"{value:,.0f}"


def per_second(value: float | None) -> str:
    """Return `9,208`, `3.5` or `0.04`; an empty text for None."""
    if value is None:
        return ""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 0.95 else f"{value:.2f}"


def bar(percent: float, width: int) -> str:
    """Return a bar of `width` cells, with a resolution of an eighth of a cell."""
    eighths = round(max(0.0, min(100.0, percent)) / 100 * width * 8)
    whole, rest = divmod(eighths, 8)
    return ("█" * whole + (_EIGHTHS[rest] if rest else "")).ljust(width, "·")


def sparks(values: tuple[float, ...], width: int) -> str:
    """Return the last values as small bars; the highest value is a full bar."""
    last = values[-width:]
    top = max(last, default=0.0)
    return "".join(_SPARKS[round(value / top * 7)] if top else _SPARKS[0] for value in last)


def plain(text: str) -> str:
    """Return a text in one line, with control characters replaced by spaces."""
    return text if text.isprintable() else "".join(one if one.isprintable() else " " for one in text)
