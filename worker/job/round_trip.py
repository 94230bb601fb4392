"""Which values are equal to themselves after a round trip through JSON: by their type, or by comparison."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import functools
import math
import types
import typing
import uuid
from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, PydanticUserError, TypeAdapter

from worker.errors import InvalidArguments, format_error

#: How types without a configuration of their own are written: bytes as base64, NaN and infinities as texts.
CONFIG = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="strings")
_ANY: TypeAdapter[Any] = TypeAdapter(Any)

#: Types all of whose values survive, written by pydantic with this configuration. Not among them:
#: datetime (pydantic reads no offset with seconds), and all types that have a configuration or validators of their own.
_EXACT = frozenset({bool, int, float, str, bytes, type(None), decimal.Decimal, datetime.date, uuid.UUID})
_CONTAINERS = frozenset({list, set, frozenset, tuple})
#: The longest text that is not compared; the JSON parser reads no integer of more than 4,300 digits.
MAX_UNCHECKED_LENGTH = 4_000
_MAX_BITS = 13_000


def is_exact(hint: Any) -> bool:
    """Return whether each value of a type is equal to itself after a round trip through JSON."""
    if hint in _EXACT if isinstance(hint, type) else hint is None:
        return True
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in _CONTAINERS:
        return all(is_exact(argument) for argument in arguments if argument is not ...)
    if origin is dict:
        return arguments[0] is str and is_exact(arguments[1])
    if origin is typing.Literal:
        return all(type(value) in (str, int, bool, type(None)) for value in arguments) and _is_unambiguous(arguments)
    if origin is typing.Union or origin is types.UnionType:  # of several types, JSON may mean another one
        return len(arguments) == 2 and type(None) in arguments and all(map(is_exact, arguments))
    return False


def _is_unambiguous(values: tuple[Any, ...]) -> bool:
    return len(set(values)) == len(values)  # `Literal[1, True]` has two values that are equal


def is_same(before: Any, after: Any) -> bool:
    """Return whether a value is the same after a round trip: of the same type, and equal.

    Objects without an equality of their own are compared by their attributes. NaN is the same as NaN.
    """
    if type(before) is not type(after):
        # Some types have private subclasses, e.g. the paths of an operating system and the zones of pydantic.
        return isinstance(after, datetime.tzinfo) and isinstance(before, datetime.tzinfo)
    if isinstance(before, float) and math.isnan(before):
        return math.isnan(after)
    if isinstance(before, Mapping):
        return before.keys() == after.keys() and all(is_same(value, after[key]) for key, value in before.items())
    if isinstance(before, list | tuple):
        return len(before) == len(after) and all(map(is_same, before, after))
    if dataclasses.is_dataclass(before) and not isinstance(before, type):
        fields = [field.name for field in dataclasses.fields(before)]
        return all(is_same(getattr(before, name, None), getattr(after, name, None)) for name in fields)
    if getattr(type(before), "__eq__", None) is object.__eq__:
        state, known = _state(before), _state(after)
        return before is after or (bool(state) and is_same(state, known))
    return bool(before == after)


def is_plain_default(hint: Any, default: Any) -> bool:
    """Return whether a default is of a type without validating it; False where only its validation tells."""
    if hint is Any or (hint is None and default is None):
        return True
    is_union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if is_union else (hint,)
    return type(default) in _EXACT and any(kind is type(default) for kind in kinds)


def keeps_default(default: Any, validated: Any) -> bool:
    """Return whether a default is what its validation returns: equal, and of the same type or a subclass of it.

    An int is a float, too, as for type checkers.
    """
    if is_same(default, validated):
        return True
    is_number = type(validated) is float and type(default) is int
    return bool((is_number or isinstance(default, type(validated))) and default == validated)


def as_lists(value: Any) -> Any:
    """Return a value with lists instead of tuples, also in lists and dictionaries: JSON has one kind of array."""
    if type(value) in (list, tuple):
        return [as_lists(each) for each in value]
    if type(value) is dict:
        return {key: as_lists(each) for key, each in value.items()}
    return value


def to_json_values(job: str, argument: str, value: Any) -> Any:
    """Return a value of a job without its function as JSON values: its types are not known here.

    Lists, tuples and dictionaries are converted with what they hold. A value of another type is converted if pydantic
    reads it back as it was, by its own type; the worker converts it to the type of the argument.

    Args:
        job: name of the job, for errors.
        argument: name of the argument, for errors.
        value: the value.

    Raises:
        InvalidArguments: It cannot be converted, or does not come back as it was.
    """
    kind = type(value)
    if kind in (bool, type(None)) or (kind is float and math.isfinite(value)) or (kind is str and value.isascii()):
        return value
    if kind is int and value.bit_length() < _MAX_BITS:
        return value
    if kind in (list, tuple):
        return [to_json_values(job, f"{argument}.{place}", each) for place, each in enumerate(value)]
    if kind is dict and all(type(key) is str for key in value):
        return {key: to_json_values(job, f"{argument}.{key}", each) for key, each in value.items()}
    try:
        adapter = _adapter(kind)  # type: ignore[arg-type]
        text = adapter.dump_json(value, by_alias=False, round_trip=True, warnings="none")
        same = is_same(value, adapter.validate_json(text, by_alias=True, by_name=True))
        plain = _ANY.validate_json(text)
    except Exception as error:  # noqa: BLE001 - the class of a value may raise anything
        raise InvalidArguments(f"job {job}: {argument}: cannot be converted to JSON: {format_error(error)}") from None
    if not same:
        raise InvalidArguments(
            f"job {job}: {argument}: a {kind.__qualname__} does not come back from JSON as it was given"
        )
    return plain


def make_adapter(hint: Any) -> TypeAdapter[Any]:
    """Return the validator of a type, with our configuration if the type has none of its own."""
    try:
        return TypeAdapter(hint, config=CONFIG)
    except PydanticUserError:  # a model, a dataclass or a TypedDict has a configuration of its own
        return TypeAdapter(hint)


_adapter = functools.lru_cache(256)(make_adapter)


def _state(value: Any) -> dict[str, Any]:
    slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ()) if name != "__weakref__"]
    state = {name: getattr(value, name) for name in slots if hasattr(value, name)}
    return state | getattr(value, "__dict__", {})
