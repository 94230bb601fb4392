"""Small plots as SVG. Sizes are attributes: the policy of the page forbids inline styles."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from worker.web.page.text import compact, show
from worker.web.views import MinuteView

_HEIGHT = 100.0
_MOST_SLOTS = 40


def _trace(values: Sequence[float | None], top: float) -> tuple[Markup, Markup]:
    """Return the paths of an area and of its line, for values at equal distances. None is a gap."""
    parts: list[list[tuple[float, float]]] = [[]]
    for at, value in enumerate(values):
        if value is None:
            parts.append([])
        else:
            parts[-1].append((float(at), _HEIGHT * (1 - min(value, top) / top)))
    known = [part if len(part) > 1 else [*part, (part[0][0] + 0.4, part[0][1])] for part in parts if part]
    lines = "".join("M" + "L".join(f"{x:g} {y:.1f}" for x, y in part) for part in known)
    areas = "".join(
        f"M{part[0][0]:g} {_HEIGHT:g}L" + "L".join(f"{x:g} {y:.1f}" for x, y in part) + f"L{part[-1][0]:g} {_HEIGHT:g}Z"
        for part in known
    )
    return Markup('<path class="area" d="{}"/>').format(areas), Markup('<path class="line" d="{}"/>').format(lines)


def line(values: Sequence[float | None], label: str, *, kind: str = "") -> Markup:
    """Return a plot of values at equal distances, oldest first, as an area with a line, from 0 to the largest one.

    Args:
        values: the values; None for a gap.
        label: what a screen reader says.
        kind: a class of the stylesheet that gives the colour.
    """
    top = max((value for value in values if value is not None), default=0.0) or 1.0
    area, trace = _trace(values, top)
    return Markup(
        '<svg class="plot {}" viewBox="0 -2 {} 104" preserveAspectRatio="none" role="img" aria-label="{}">{}{}</svg>'
    ).format(kind, max(1, len(values) - 1), label, area, trace)


def flow(minutes: Sequence[MinuteView | None], name: str) -> Markup:
    """Return the plot of a queue: runs in and out by the minute, in one scale."""
    entered = [None if minute is None else float(minute.enqueued) for minute in minutes]
    ended = [None if minute is None else float(minute.ended) for minute in minutes]
    top = max((value for value in [*entered, *ended] if value is not None), default=0.0) or 1.0
    label = f"Runs in and out of {show(name)} by the minute; at most {compact(top)}"
    area, trace = _trace(ended, top)
    drawn = area + trace + Markup('<g class="in">{}</g>').format(_trace(entered, top)[1])
    return Markup(
        '<div class="flow"><svg class="plot" viewBox="0 -2 {} 104" preserveAspectRatio="none" role="img"'
        ' aria-label="{}">{}</svg><span class="top num">{}</span></div>'
        '<p class="legend"><span class="out">out {}</span><span class="in">in ≈{}</span></p>'
    ).format(max(1, len(minutes) - 1), label, drawn, compact(top), compact(_newest(ended)), compact(_newest(entered)))


def _newest(values: Sequence[float | None]) -> float | None:
    """Return the value of the last whole minute."""
    return next((value for value in reversed(values[:-1]) if value is not None), None)


def slots(used: int, count: int) -> Markup:
    """Return the slots of a worker as boxes, the used ones filled."""
    shown = min(count, _MOST_SLOTS)
    filled = round(used * shown / count) if count else 0
    boxes = Markup("").join(
        Markup('<rect class="{}" x="{}" width="7" height="12" rx="1.5"/>').format(
            "used" if at < filled else "free", at * 9
        )
        for at in range(shown)
    )
    return Markup(
        '<svg class="boxes" width="{0}" height="12" viewBox="0 0 {0} 12" aria-hidden="true">{1}</svg>'
    ).format(max(1, shown * 9 - 2), boxes)
