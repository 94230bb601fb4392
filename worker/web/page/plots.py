"""Small plots as SVG. Sizes are attributes: the policy of the page forbids inline styles."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

_HEIGHT = 100.0


def line(values: Sequence[float | None], label: str, *, kind: str = "", top: float | None = None) -> Markup:
    """Return a plot of values at equal distances, oldest first, as an area with a line.

    Args:
        values: the values; None for a gap.
        label: what a screen reader says.
        kind: a class of the stylesheet that gives the colour.
        top: the value at the upper edge; by default the largest one.
    """
    highest = top if top is not None else max((value for value in values if value is not None), default=0.0)
    highest = highest or 1.0
    width = max(1, len(values) - 1)
    parts: list[list[tuple[float, float]]] = [[]]
    for at, value in enumerate(values):
        if value is None:
            parts.append([])
        else:
            parts[-1].append((float(at), _HEIGHT * (1 - min(value, highest) / highest)))
    lines = "".join("M" + "L".join(f"{x:g} {y:.1f}" for x, y in part) for part in parts if part)
    areas = "".join(
        f"M{part[0][0]:g} {_HEIGHT:g}L" + "L".join(f"{x:g} {y:.1f}" for x, y in part) + f"L{part[-1][0]:g} {_HEIGHT:g}Z"
        for part in parts
        if part
    )
    return Markup(
        '<svg class="plot {}" viewBox="0 -2 {} 104" preserveAspectRatio="none" role="img" aria-label="{}">'
        '<path class="area" d="{}"/><path class="line" d="{}"/></svg>'
    ).format(kind, width, label, areas, lines)
