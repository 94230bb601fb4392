"""Renders a snapshot in Prometheus' text format, by `prometheus_client`. Only this module needs the extra `metrics`."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from worker.observe.metrics import definitions
from worker.observe.metrics.snapshot import Snapshot, Value

CONTENT_TYPE = CONTENT_TYPE_LATEST


class _Collector(Collector):
    """Yields the families of one snapshot.

    Args:
        snapshot: the values.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        for metric in definitions.METRICS:
            values = self._snapshot.get(metric.name)
            if values:
                yield _make_family(metric, values)


def _make_family(metric: definitions.Metric, values: dict[tuple[str, ...], Value]) -> Metric:
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
        bounds = [*map(str, metric.buckets), "+Inf"]
        for labels, value in values.items():
            assert isinstance(value, list)  # noqa: S101
            histogram.add_metric(labels, list(zip(bounds, _accumulate(value[:-1]), strict=True)), value[-1])
        return histogram
    made = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family = made(metric.name, metric.help, labels=metric.labels)
    for labels, value in values.items():
        assert not isinstance(value, list)  # noqa: S101
        family.add_metric(labels, value)
    return family


def _accumulate(counts: list[float]) -> list[float]:
    """Return for each bucket the number of values up to its bound."""
    total, found = 0.0, []
    for count in counts:
        total += count
        found.append(total)
    return found


def render(snapshot: Snapshot) -> bytes:
    """Return a snapshot in Prometheus' text format."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(snapshot))
    return generate_latest(registry)
