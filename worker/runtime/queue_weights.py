"""Several queues for one worker: how many of its free slots each gets."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Literal


class QueueWeights:
    """The order in which queues are served, and how much is taken from each.

    By weight, each gets its part of the free slots, at least one, and the one that is served first is drawn anew each
    time: so none is starved, even where there is one slot. What some do not need goes to the others. Strictly, the
    heavier one gets all that it needs, and the others what is left.

    Args:
        weights: of each queue, by name.
        kind: weighted or strict.
    """

    def __init__(self, weights: Mapping[str, int], kind: Literal["weighted", "strict"] = "weighted") -> None:
        self.queues = sorted(weights, key=lambda queue: -weights[queue])
        self._weights = dict(weights)
        self._whole = sum(weights.values())
        self._strict = kind == "strict" or len(weights) == 1

    def shares(self, slots: int) -> list[tuple[str, int]]:
        """Return what to take from each, for so many free slots."""
        if self._strict:
            return [(queue, slots) for queue in self.queues]
        drawn = sorted(self.queues, key=lambda queue: random.random() ** (1 / self._weights[queue]), reverse=True)  # noqa: S311
        parts = [(queue, max(1, slots * self._weights[queue] // self._whole)) for queue in drawn]
        return parts + [(queue, slots) for queue in drawn]
