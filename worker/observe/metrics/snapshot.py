"""The values of all metrics at one moment, as plain data that can be merged and sent to another process."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterable, Mapping

from worker.observe.metrics.definitions import BY_NAME, Metric

#: A number; or, of a histogram, the number of values in each bucket, then beyond the last bound, then their sum.
Value = float | list[float]
#: Values by labels, by name of the metric.
Snapshot = dict[str, dict[tuple[str, ...], Value]]


class Histogram:
    """Counts values by buckets, in plain numbers: `prometheus_client` takes a lock for each value and each bucket.

    Args:
        metric: its definition.

    Attributes:
        counts: number of values in each bucket, and beyond the last bound.
        sum: sum of the values.
    """

    __slots__ = ("_bounds", "counts", "sum")

    def __init__(self, metric: Metric) -> None:
        self._bounds = metric.buckets
        self.counts = [0] * (len(metric.buckets) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.sum += value

    def value(self) -> list[float]:
        """Return the counts and the sum."""
        return [*self.counts, self.sum]


def merge(snapshots: Iterable[Snapshot]) -> Snapshot:
    """Return one snapshot of several processes: sums of what they have done, and the state of what they share."""
    merged: Snapshot = {}
    for snapshot in snapshots:
        for name, values in snapshot.items():
            metric, known = BY_NAME[name], merged.setdefault(name, {})
            for labels, value in values.items():
                known[labels] = value if labels not in known else _merge_values(metric, known[labels], value)
    return merged


def _merge_values(metric: Metric, one: Value, other: Value) -> Value:
    if isinstance(one, list) and isinstance(other, list):
        return [a + b for a, b in zip(one, other, strict=True)]
    assert not isinstance(one, list)  # noqa: S101
    assert not isinstance(other, list)  # noqa: S101
    return {"sum": one + other, "max": max(one, other), "min": min(one, other)}[metric.merge]


def keep_counts(snapshot: Snapshot) -> Snapshot:
    """Return the part of a snapshot that stays true after its process has ended."""
    kept = {name for name in snapshot if BY_NAME[name].kind != "gauge" or name.endswith("_timestamp_seconds")}
    return {name: dict(snapshot[name]) for name in kept}


def dump(snapshot: Snapshot) -> str:
    """Return a snapshot as JSON text in one line."""
    return json.dumps({name: list(values.items()) for name, values in snapshot.items()})


def load(raw: Mapping[str, list[tuple[list[str], Value]]]) -> Snapshot:
    """Return the snapshot of a parsed JSON text that `dump` has made. Omit metrics that another version has."""
    return {
        name: {tuple(labels): value for labels, value in values}
        for name, values in raw.items()
        if name in BY_NAME and all(_fits(BY_NAME[name], value) for _, value in values)
    }


def _fits(metric: Metric, value: Value) -> bool:
    if metric.kind != "histogram":
        return not isinstance(value, list)
    return isinstance(value, list) and len(value) == len(metric.buckets) + 2
