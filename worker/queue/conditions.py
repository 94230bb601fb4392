"""Operator commands for the runs of a job with some arguments: `SADD worker:paused 'serve?tenant=north'`."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from worker.errors import InvalidArguments
from worker.job.limits import argument_text

#: Takes the name of an argument, a text and a JSON value.
StandsFor = Callable[[str, str, Any], bool]


@dataclass(frozen=True)
class Condition:
    """The runs of one job whose arguments have some values.

    Attributes:
        entry: its text in Redis: the job, `?`, and `argument=value` once or several times, with `&` between them.
        job: the name of the job.
        values: the text of each argument, by name.
        stands_for: returns whether a text stands for a JSON value of an argument of the job, by the argument's type.
    """

    entry: str
    job: str
    values: Mapping[str, str]
    stands_for: StandsFor | None = None

    def matches(self, arguments: Mapping[str, Any]) -> bool:
        """Return whether a run has these values.

        Args:
            arguments: JSON values by name, with the defaults.
        """
        return all(name in arguments and self._is_value(name, arguments[name]) for name in self.values)

    def _is_value(self, name: str, value: Any) -> bool:
        text = self.values[name]
        return _is_named(value, text) or (self.stands_for is not None and self.stands_for(name, text, value))

    def check_names(self, known: Collection[str]) -> None:
        """Raise `InvalidArguments` if the job has no argument of one of the names."""
        unknown = [name for name in self.values if name not in known]
        if unknown:
            its_own = ", ".join(known) or "none"
            raise InvalidArguments(f"job {self.job} has no argument {', '.join(unknown)}; it has {its_own}")


def _is_named(value: Any, text: str) -> bool:
    """Return whether a text names a JSON value, in whatever form it writes numbers and objects: 5 is 5.0."""
    if argument_text(value) == text:
        return True
    if isinstance(value, str):
        return False
    try:
        return _is_equal(json.loads(text), value)
    except (ValueError, RecursionError):
        return False


def _is_equal(one: Any, other: Any) -> bool:
    """Return whether two JSON values are equal; true is not 1, also in lists and objects."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_is_equal(value, other[name]) for name, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_is_equal, one, other))
    return bool(one == other)


def make_entry(job: str, where: Mapping[str, Any]) -> str:
    """Return the entry for the runs of a job with these arguments; `%`, `&` and control characters are escaped."""
    return f"{job}?" + "&".join(f"{_escape(name)}={_escape(argument_text(value))}" for name, value in where.items())


def make_entries(targets: Sequence[str], where: Mapping[str, Any] | None) -> list[str]:
    """Return the entries of `worker:paused` for some targets."""
    return [make_entry(target, where) for target in targets] if where else list(targets)


def parse_entry(entry: str) -> Condition:
    """Return the condition of an entry that contains `?`.

    Raises:
        InvalidArguments: It has another form.
    """
    job, _, text = entry.partition("?")
    values: dict[str, str] = {}
    for part in text.split("&"):
        name, equals, value = part.partition("=")
        if not name or not equals or unquote(name) in values:
            raise InvalidArguments(f"{entry!r} is not of the form job?argument=value&other=value")
        values[unquote(name)] = unquote(value)
    return Condition(entry, job, values)


def _escape(text: str) -> str:
    return "".join(one if one.isprintable() and one not in "%&" else _percent(one) for one in text)


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode(errors="surrogatepass"))
