"""A report as one self-contained page of HTML, and as a plot in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape as escape_html

from worker.plan.report import RatePoint, RunReport, StepReport

_WIDTH, _HEIGHT = 720, 180
_BARS = "▁▂▃▄▅▆▇█"
_STYLE = """
body{font:14px/1.5 system-ui,sans-serif;max-width:760px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:.5em 0}td,th{padding:.2em .8em .2em 0;text-align:left;vertical-align:top}
.bar{background:#4a7ebb;height:.8em;display:inline-block}svg{background:#f6f8fa;width:100%}
path{fill:none;stroke:#4a7ebb;stroke-width:1.5}text{font-size:11px;fill:#555}pre{white-space:pre-wrap}
"""


def bucket_rates(rates: Sequence[RatePoint], buckets: int) -> list[float]:
    """Return the mean rate of spans of equal length, from the rates of spans that differ in length."""
    if not rates:
        return []
    end = rates[-1].seconds or 1.0
    rows, at = [0.0] * buckets, 0.0
    for point in rates:
        first, last = at / end * buckets, point.seconds / end * buckets
        for place in range(int(first), min(buckets, int(last) + 1)):
            share = max(0.0, min(last, place + 1) - max(first, place)) * end / buckets
            rows[place] += point.rows_per_second * share
        at = point.seconds
    return [one / (end / buckets) for one in rows]


def plot_text(rates: Sequence[RatePoint], width: int = 60) -> str:
    """Return the rate over time as one line of bars."""
    values = bucket_rates(rates, width)
    top = max(values, default=0.0)
    return "".join(_BARS[round(value / top * (len(_BARS) - 1))] for value in values) if top > 0 else ""


def make_page(report: RunReport) -> str:
    """Return a page that loads nothing from elsewhere."""
    run = report.run
    rows = [
        ("job", run.job),
        ("state", run.state),
        ("began", f"{run.created_at:%Y-%m-%d %H:%M:%S %Z}"),
        ("took", f"{report.seconds:,.1f} s"),
        ("rows", f"{run.rows:,}"),
        ("batches", f"{run.batches:,}"),
        ("attempt", str(run.attempt)),
        ("takeovers", str(run.takeovers)),
        ("quarantined rows", str(report.quarantined)),
        ("hands", str(1 + len(report.hands))),
        ("error", run.error or ""),
    ]
    parts = [_table([row for row in rows if row[1]]), _time(report.time)]
    parts += [_step(step) for step in report.steps]
    if report.hands:
        parts.append("<h2>Hands</h2>")
        hands = [(hand["id"], f"{hand['state']}, {hand['owner']}, {hand['rows']:,} rows") for hand in report.hands]
        parts.append(_table(hands))
    title = escape(f"Run {run.id}")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1>{''.join(parts)}</body></html>\n"
    )


def _table(rows: Sequence[tuple[str, str]]) -> str:
    cells = "".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f"<table>{cells}</table>"


def escape(text: str) -> str:
    r"""Return a text for HTML. Characters that cannot be seen, or that turn the direction, are as `\u202e`."""
    shown = (one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    return escape_html("".join(shown))


def _step(step: StepReport) -> str:
    about = (
        f"{step.kind}: {step.rows:,} rows in {step.batches:,} batches, {step.seconds:,.1f} s, "
        f"{step.rows_per_second:,.0f} rows/s"
    )
    return f"<h2>{escape(step.name)}</h2><p>{escape(about)}</p>{_plot(step.rates)}{_time(step.time)}"


def _time(time: Mapping[str, float]) -> str:
    total = sum(time.values()) or 1.0
    spent = "".join(
        f"<tr><th>{escape(reason)}</th><td>{seconds:,.1f} s</td><td>"
        f'<span class="bar" style="width:{seconds / total * 300:.0f}px"></span> {seconds / total:.0%}</td></tr>'
        for reason, seconds in sorted(time.items(), key=lambda one: -one[1])
    )
    return f"<table>{spent}</table>"


def _plot(rates: Sequence[RatePoint]) -> str:
    """Return the rate over time as SVG: one step for each sample."""
    top, end = max((one.rows_per_second for one in rates), default=0.0), rates[-1].seconds if rates else 0.0
    if top <= 0 or end <= 0:
        return "<p>no samples</p>"
    path: list[str] = []
    left = 0.0
    for one in rates:
        y, x = _HEIGHT * (1 - one.rows_per_second / top), one.seconds / end * _WIDTH
        path.append(f"{'L' if path else 'M'}{left:.1f} {y:.1f}H{x:.1f}")
        left = x
    return (
        f'<svg viewBox="0 -14 {_WIDTH} {_HEIGHT + 32}" role="img" aria-label="rows per second over time">'
        f'<path d="{"".join(path)}"/><text x="2" y="-3">{top:,.0f} rows/s</text>'
        f'<text x="2" y="{_HEIGHT + 14}">0 s</text>'
        f'<text x="{_WIDTH - 2}" y="{_HEIGHT + 14}" text-anchor="end">{end:,.1f} s</text></svg>'
    )
