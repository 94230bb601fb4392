"""The heights of the bands of the page."""

from __future__ import annotations

from collections.abc import Mapping

_LEAST = 4  # borders, titles and a row
_SHARE = 0.22
_FOCUSED_SHARE = 0.55


def heights(room: int, wanted: Mapping[str, int], focused: str, rest: str = "runs") -> dict[str, int]:
    """Return the height of each band: at most what it needs, and more of the page for the focused one.

    Args:
        room: lines that there are.
        wanted: lines that each band would like to have.
        focused: band where the cursor is.
        rest: band that gets what is left.
    """
    found = {}
    for band, lines in wanted.items():
        if band != rest:
            share = _FOCUSED_SHARE if band == focused else _SHARE
            found[band] = max(_LEAST, min(lines, int(room * share)))
    found[rest] = room - sum(found.values())
    while found[rest] < _LEAST and (high := max(found, key=lambda one: found[one])) != rest and found[high] > 3:
        found[high] -= 1
        found[rest] += 1
    return {band: found[band] for band in wanted}
