"""Renders snapshots in Prometheus' text format, by `prometheus_client`. Only this module needs the extra `metrics`.

The library takes several microseconds for a line, and a page may have thousands. So it renders each series once.
These lines become a template, into which later pages put the values, and only those of series that have changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from worker.observe.metrics import definitions
from worker.observe.metrics.snapshot import Snapshot, Value

CONTENT_TYPE = CONTENT_TYPE_LATEST

_format_number = lru_cache(8192)(floatToGoString)


class Exposition:
    """Renders the snapshots of one process, one after the other."""

    def __init__(self) -> None:
        #: The first lines of a metric, and its series by their labels.
        self._heads: dict[str, str] = {}
        self._series: dict[str, dict[tuple[str, ...], _Series]] = {}

    def render(self, snapshot: Snapshot) -> bytes:
        """Return a snapshot as text."""
        texts = []
        for metric in definitions.METRICS:
            values = snapshot.get(metric.name)
            if values:
                known = self._series.setdefault(metric.name, {})
                for labels in values.keys() - known.keys():
                    self._heads[metric.name], known[labels] = _make_series(metric, labels)
                texts.append(self._heads[metric.name])
                texts += [known[labels].fill(value) for labels, value in values.items()]
        return "".join(texts).encode()


class _Series:
    """The lines of one series.

    Args:
        template: the lines, with `%s` for each value.
        places: for each `%s`, the place of its value among the numbers of the series.
    """

    __slots__ = ("_places", "_template", "_text", "_value")

    def __init__(self, template: str, places: Sequence[int]) -> None:
        self._template = template
        self._places = places
        self._value: Value | None = None
        self._text = ""

    def fill(self, value: Value) -> str:
        """Return the lines with a value."""
        if value != self._value:
            numbers = [*accumulate(value[:-1]), value[-1]] if isinstance(value, list) else [value]
            self._text = self._template % tuple([_format_number(numbers[place]) for place in self._places])
            self._value = value
        return self._text


class _Collector(Collector):
    """Yields one family.

    Args:
        family: the family.
    """

    def __init__(self, family: Metric) -> None:
        self._family = family

    def collect(self) -> Sequence[Metric]:
        """Return the family."""
        return [self._family]


def _make_series(metric: definitions.Metric, labels: tuple[str, ...]) -> tuple[str, _Series]:
    """Return the first lines of a metric, and one series. It is rendered with the place of each number as its value."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(_make_family(metric, labels)))
    lines = generate_latest(registry).decode().split("\n")[:-1]
    samples = [line.rpartition(" ") for line in lines if not line.startswith("#")]
    template = "".join(f"{text.replace('%', '%%')} %s\n" for text, _, _ in samples)
    head = "".join(f"{line}\n" for line in lines if line.startswith("#"))
    return head, _Series(template, [int(float(number)) for _, _, number in samples])


def _make_family(metric: definitions.Metric, labels: tuple[str, ...]) -> Metric:
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        bounds = [*map(str, metric.buckets), "+Inf"]
        histogram.add_metric(labels, [(bound, place) for place, bound in enumerate(bounds)], len(bounds))
        return histogram
    made = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = made(metric.name, metric.help, labels=metric.labels)
    family.add_metric(labels, 0)
    return family
