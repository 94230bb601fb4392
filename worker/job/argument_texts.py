"""Texts that stand for values of a job's arguments, such as those of `--where` and of commands by `redis-cli`."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from worker.errors import InvalidArguments
from worker.job.arguments import JobCodec
from worker.job.results import describe_invalid

#: The types of which each value has one text alone.
_ONE_TEXT = frozenset({Any, str, int, bytes, str | None, int | None})


@lru_cache(1_000)
def _make_adapter(codec: JobCodec, name: str) -> TypeAdapter[Any] | None:
    """Return the adapter of an argument's type; None if it may have any value."""
    hint = _find_hint(codec, name)
    return None if hint is Any else TypeAdapter(hint)


def _find_hint(codec: JobCodec, name: str) -> Any:
    parameter = codec.signature.parameters.get(name)
    return Any if parameter is None or parameter.annotation is parameter.empty else parameter.annotation


def parse_argument(codec: JobCodec, name: str, text: str) -> Any:
    """Return the JSON value that a text stands for: a text of the argument's type, or JSON.

    Raises:
        InvalidArguments: The argument's type has no such value.
    """
    adapter = _make_adapter(codec, name)
    return text if adapter is None else adapter.dump_python(_read(codec, adapter, name, text), mode="json")


def _read(codec: JobCodec, adapter: TypeAdapter[Any], name: str, text: str) -> Any:
    problem = ""
    for written in (json.dumps(text), text):
        try:
            return adapter.validate_json(written)
        except ValidationError as error:
            problem = problem or describe_invalid(error)
    raise InvalidArguments(f"job {codec.job}{codec.signature}: {name}={text}: {problem}")


def stands_for(codec: JobCodec, name: str, text: str, value: Any) -> bool:
    """Return whether a text stands for the value of an argument, in whatever form the type writes it.

    2026-01-02T01:00+01:00 stands for midnight in UTC, and 1.00 for the decimal 1.

    Args:
        codec: The arguments of the job.
        name: The argument.
        text: The text.
        value: The JSON value.
    """
    try:
        if _find_hint(codec, name) in _ONE_TEXT:
            return False  # the caller has compared the texts
        adapter = _make_adapter(codec, name)
        if adapter is None:
            return False
        one, other = _read(codec, adapter, name, text), adapter.validate_json(json.dumps(value))
        return bool(type(one) is type(other) and one == other)
    except Exception:  # noqa: BLE001 - a type of the application can raise anything; it is no value of it
        return False
