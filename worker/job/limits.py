"""What a job may be limited by: how many at once, how many a time, how often with the same arguments."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from worker.errors import RegistrationError

_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*/\s*(second|minute|hour|day)s?(?:\s+burst\s+(\d+))?")

UniqueWhile = Literal["active", "waiting"]


@dataclass(frozen=True)
class Rate:
    """So many a time, evenly spaced.

    Attributes:
        every_ms: time between two.
        burst: how many may come at once after a pause.
    """

    every_ms: float
    burst: int = 1

    @classmethod
    def parse(cls, text: str) -> Rate:
        """Read "100/minute" or "100/minute burst 10".

        Raises:
            RegistrationError: it is no rate.
        """
        found = _RATE.fullmatch(text.strip().lower())
        if found is None or float(found[1]) <= 0 or found[3] == "0":
            raise RegistrationError(f'rate={text!r}: write e.g. "100/minute", or "100/minute burst 10"')
        return cls(1000 * _UNITS[found[2]] / float(found[1]), int(found[3] or 1))

    @property
    def tolerance_ms(self) -> float:
        """How early one may come."""
        return (self.burst - 1) * self.every_ms


@dataclass(frozen=True)
class Limits:
    """How many at once, and how many a time, over all workers.

    Attributes:
        limit: runs at once; 0 for any number.
        limit_by: name of the argument for each of whose values the limit holds; None for one limit.
        rate: how many a time; None for any.
        rate_by: as `limit_by`, for the rate.
    """

    limit: int = 0
    limit_by: str | None = None
    rate: Rate | None = None
    rate_by: str | None = None


@dataclass(frozen=True)
class Unique:
    """Of runs with the same arguments there is one.

    Attributes:
        by: names of the arguments that count; None for all of them.
        counts: while it is in the queue ("active"), while it only waits ("waiting"), or for a time ("time").
        seconds: that time, or the longest life of the mark of one that is in the queue.
    """

    by: tuple[str, ...] | None
    counts: Literal["active", "waiting", "time"]
    seconds: float

    def key(self, job: str, arguments: Mapping[str, Any]) -> str:
        """Return what runs that are the same have in common.

        Args:
            job: its name.
            arguments: JSON values by name.
        """
        chosen = arguments if self.by is None else {name: arguments.get(name) for name in self.by}
        text = json.dumps(chosen, sort_keys=True, ensure_ascii=False)
        return f"{job}:{hashlib.sha256(text.encode()).hexdigest()[:20]}"


_WEEK = 7 * 86400.0


def unique_of(
    unique: bool | str | tuple[str, ...] | list[str], seconds: float | None, while_: UniqueWhile
) -> Unique | None:
    """Return what `@job(unique=..., unique_for=..., unique_while=...)` asks for."""
    if unique is False:
        return None
    by = None if unique is True else (unique,) if isinstance(unique, str) else tuple(unique)
    return Unique(by, "time" if seconds is not None else while_, seconds if seconds is not None else _WEEK)
