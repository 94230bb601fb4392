"""Small plots as SVG. Sizes are attributes: the policy of the page forbids inline styles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from worker.web.page.run import Series
from worker.web.page.story import Moment, Share, Span, Story
from worker.web.page.text import compact, counted, duration, show
from worker.web.views import JobRunView, MinuteView, RangeView

_HEIGHT = 100.0
_MOST_SLOTS = 40
_MARK_WIDTH = 1.6
#: On a narrow page. Marks that are closer have a line only.
_NARROW_MARK_WIDTH = 5.5
_MOST_RANGES = 400
#: Share of the line of time on which a letter fits.
_LETTER_WIDTH = 4.0


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


def story(told: Story, kinds: Mapping[str, str]) -> Markup:
    """Return the line of time of a run: what it did when, and a mark for each thing that happened."""
    mark = Markup(
        '<svg class="mark is-{}{}" x="{:.3f}%" y="0" overflow="visible"><title>{}</title>'
        '<path d="M0 20v34"/><use href="#i-{}" x="-8" y="0" width="16" height="16"/></svg>'
    )
    spans = Markup("").join(_span(told, one, kinds) for one in told.spans)
    shown = _thin_out(told.moments, _MARK_WIDTH)
    wide = _thin_out(shown, _NARROW_MARK_WIDTH)
    marks = Markup("").join(
        mark.format(one.state, "" if one in wide else " is-close", one.place, show(one.text), show(one.icon))
        for one in shown
    )
    label = "; ".join(f"{one.name} {duration(one.seconds)}" for one in told.shares)
    return Markup('<svg class="story" width="100%" height="56" role="img" aria-label="{}">{}{}</svg>').format(
        show(label), spans, marks
    )


def _span(told: Story, one: Span, kinds: Mapping[str, str]) -> Markup:
    """Return a span of the line of time. A throttle has the pattern of its reason, and its letter if that fits."""
    bar = Markup('<rect class="span is-{}"{} x="{:.3f}%" y="26" width="{:.3f}%" height="22"><title>{}</title></rect>')
    if not one.reason:
        return bar.format(one.kind, "", one.place, one.width, kinds[one.kind])
    tone = told.tone(one.reason)
    title = f"{kinds[one.kind]}: {show(one.reason)}"
    drawn = bar.format(one.kind, Markup(' fill="url(#tone-{})"').format(tone), one.place, one.width, title)
    if one.width < _LETTER_WIDTH:
        return drawn
    return drawn + Markup('<text class="letter" x="{:.3f}%" y="41.5">{}</text>').format(
        one.place + one.width / 2, _letter(tone)
    )


def swatch(told: Story, share: Share) -> Markup:
    """Return the sign of a part of the run's time in the legend."""
    if not share.reason:
        return Markup('<span class="swatch is-{}"></span>').format(share.kind)
    tone = told.tone(share.reason)
    return Markup(
        '<svg class="tone" width="22" height="16" aria-hidden="true"><rect width="22" height="16" rx="3"'
        ' fill="url(#tone-{})"/><text class="letter" x="11" y="12.5">{}</text></svg>'
    ).format(tone, _letter(tone))


def _letter(tone: int) -> str:
    return chr(ord("A") + tone)


def ranges(found: Sequence[RangeView]) -> Markup:
    """Return the ranges of a walk as boxes: done, walked at present, free."""
    shown = found[:_MOST_RANGES]
    box = Markup('<li class="{}" title="{}"></li>')
    boxes = (
        box.format(kind, f"range {one.number}: {kind}, {counted(one.rows, 'row', 'rows')}")
        for one in shown
        for kind in ["done" if one.done else "failed" if one.error else "walked" if one.owner else "free"]
    )
    return Markup('<ul class="ranges" aria-label="Ranges">{}</ul>').format(Markup("").join(boxes))


def _thin_out(moments: Sequence[Moment], width: float) -> list[Moment]:
    """Return the moments whose marks do not cover the mark before, for marks of a width."""
    found: list[Moment] = []
    for one in moments:
        if found and one is moments[-1] and one.place - found[-1].place < width:
            found.pop()
        if not found or one.place - found[-1].place >= width:
            found.append(one)
    return found


def series(one: Series) -> Markup:
    """Return the plot of a figure over the line of time."""
    top = one.top * 1.05 or 1.0
    parts: list[list[tuple[float, float]]] = [[]]
    for point in one.points:
        if point is None:
            parts.append([])
        else:
            parts[-1].append((point[0], _HEIGHT * (1 - point[1] / top)))
    drawn = Markup("").join(
        Markup('<path class="area" d="{0}L{2:g} 100L{1:g} 100Z"/><path class="line" d="{0}"/>').format(
            "M" + "L".join(f"{x:.2f} {y:.1f}" for x, y in part), part[0][0], part[-1][0]
        )
        for part in parts
        if len(part) > 1
    )
    label = f"{one.name}: {compact(one.newest)} {one.unit}, at most {compact(one.top)}"
    frame = '<svg class="plot" viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    return Markup(frame).format(label, drawn)  # noqa: S704 - the frame is a constant


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


def bars(runs: Sequence[JobRunView], name: str, label: str) -> Markup:
    """Return a value of runs as bars, oldest first. Those of runs that failed are hatched by their colour and a foot.

    Args:
        runs: the runs.
        name: the attribute.
        label: what a screen reader says.
    """
    values = [float(getattr(run, name) or 0) for run in runs]
    top = max(values, default=0.0) or 1.0
    drawn = Markup("").join(
        Markup('<rect class="{}" x="{}" y="{:.1f}" width="0.76" height="{:.1f}"/>').format(
            "good" if run.state == "succeeded" else "bad",
            at,
            _HEIGHT * (1 - max(value / top, 0.02)),
            _HEIGHT * max(value / top, 0.02),
        )
        for at, (run, value) in enumerate(zip(runs, values, strict=True))
    )
    shown = duration(top) if name == "seconds" else compact(top)
    return Markup(
        '<svg class="plot bars" viewBox="0 -2 {} 108" preserveAspectRatio="none" role="img"'
        ' aria-label="{}; at most {}">{}</svg>'
    ).format(max(20, len(runs)), label, shown, drawn)
