"""Limits of a job: concurrency, rate, and uniqueness by arguments."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Literal

from pydantic_core import to_jsonable_python

from worker.errors import InvalidArguments, RegistrationError, format_error

_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}
_RATE = re.compile(r"(\d{1,12}(?:\.\d{1,12})?)\s*/\s*(second|minute|hour|day)s?(?:\s+burst\s+(\d{1,9}))?")

UniqueWhile = Literal["active", "waiting"]

_WEEK = 7 * 86400.0


@dataclass(frozen=True)
class Rate:
    """At most N starts per interval, evenly spaced.

    Attributes:
        every_ms: milliseconds between two starts.
        burst: number of runs that may start at once after a pause.
    """

    every_ms: float
    burst: int = 1

    @classmethod
    def parse(cls, text: str) -> Rate:
        """Read "100/minute" or "100/minute burst 10".

        Raises:
            RegistrationError: The text is not a rate.
        """
        found = _RATE.fullmatch(text.strip().lower())
        if found is None or float(found[1]) <= 0 or int(found[3] or 1) == 0:
            raise RegistrationError(f'rate={text[:100]!r}: write e.g. "100/minute", or "100/minute burst 10"')
        return cls(1000 * _UNITS[found[2]] / float(found[1]), int(found[3] or 1))

    @property
    def tolerance_ms(self) -> float:
        """Milliseconds by which a start may come early."""
        return (self.burst - 1) * self.every_ms


@dataclass(frozen=True)
class Limits:
    """Concurrency and rate of a job, over all workers.

    Attributes:
        concurrency: runs at once; 0 for any number.
        concurrency_key: name of the argument for each value of which the concurrency holds; None for all runs together.
        rate: starts per interval; None for any number.
        rate_key: name of the argument for each value of which the rate holds; None for all runs together.
    """

    concurrency: int = 0
    concurrency_key: str | None = None
    rate: Rate | None = None
    rate_key: str | None = None

    @classmethod
    def parse(
        cls, concurrency: int, concurrency_key: str | None, rate: str | None, rate_key: str | None
    ) -> Limits | None:
        """Return the limits that these options of `@job` ask for; None if there are none.

        Raises:
            RegistrationError: An option is invalid.
        """
        if not concurrency and rate is None:
            return None
        return cls(concurrency, concurrency_key, None if rate is None else Rate.parse(rate), rate_key)


_LONGEST_FLOW = 200
_MAX_WEIGHT = 1_000


@dataclass(frozen=True)
class Fair:
    """The runs of a job that wait take turns by the values of an argument.

    Attributes:
        by: name of the argument.
        weights: turns that a value gets where another one gets one, by its text; 1 for the others.
    """

    by: str
    weights: Mapping[str, float]

    @classmethod
    def parse(cls, by: str | None, weights: Mapping[str, float] | None) -> Fair | None:
        """Return the rule that these options of `@job` ask for; None if there is none.

        Raises:
            RegistrationError: An option is invalid.
        """
        if weights is not None and not isinstance(weights, Mapping):
            raise RegistrationError(f"fair_weights={weights!r}: give a dict of numbers, such as {{'north': 3}}")
        if by is None:
            if weights:
                raise RegistrationError("fair_weights= needs fair_by=, the argument whose values they are for")
            return None
        for value, weight in (weights or {}).items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 1e-3 <= weight <= _MAX_WEIGHT:
                raise RegistrationError(
                    f"fair_weights[{value!r}] = {weight!r}: give a number from 0.001 to {_MAX_WEIGHT}"
                )
        return cls(by, {argument_text(value): float(weight) for value, weight in (weights or {}).items()})

    def entry(self, arguments: Mapping[str, Any]) -> str:
        """Return weight and flow of a run in the form of fair.lua.

        Args:
            arguments: JSON values by name, with the defaults.
        """
        text = argument_text(arguments.get(self.by))
        return f"{self.weights.get(text, 1.0):g} {self.by}={short_text(text)}"


def short_text(text: str) -> str:
    """Return a text for a key of Redis; 20 digits of its SHA-256 if it is long or has letters that do not print."""
    if len(text) <= _LONGEST_FLOW and text.isprintable():
        return text
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:20]


def argument_text(value: Any) -> str:
    """Return the text by which an argument's value is named in Redis: a text itself, any other value as JSON.

    Args:
        value: a JSON value, or a value of Python such as a date or a member of an enum, which goes to JSON first.

    Raises:
        InvalidArguments: it cannot be converted to JSON.
    """
    if isinstance(value, Enum | dict | list) or not isinstance(value, str | int | float | None):
        try:
            value = to_jsonable_python(value)
        except ValueError as error:
            raise InvalidArguments(f"an argument of type {type(value).__qualname__}: {format_error(error)}") from None
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


@dataclass(frozen=True)
class Unique:
    """At most one run with the same arguments.

    Attributes:
        by: names of the arguments that are compared; None for all of them.
        counts: when a run counts: while it is in the queue ("active"), while it waits ("waiting"), or for a time
            ("time").
        seconds: that time; otherwise the longest life of the lock of a run in the queue.
    """

    by: tuple[str, ...] | None
    counts: Literal["active", "waiting", "time"]
    seconds: float

    @classmethod
    def parse(cls, unique: bool | str | Sequence[str], seconds: float | None, while_: UniqueWhile) -> Unique | None:
        """Return the rule that these options of `@job` ask for; None if runs are not unique."""
        if unique is False:
            return None
        by = None if unique is True else (unique,) if isinstance(unique, str) else tuple(unique)
        return cls(by, "time" if seconds is not None else while_, seconds if seconds is not None else _WEEK)

    def key(self, job: str, arguments: Mapping[str, Any]) -> str:
        """Return the key that equal runs share.

        Args:
            job: name of the job.
            arguments: JSON values by name.
        """
        chosen = arguments if self.by is None else {name: arguments.get(name) for name in self.by}
        text = json.dumps(chosen, sort_keys=True, ensure_ascii=False)
        return f"{job}:{hashlib.sha256(text.encode()).hexdigest()[:20]}"
