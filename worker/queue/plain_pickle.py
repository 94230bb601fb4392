"""Reads pickles of plain values, as stock arq clients send them. No code of a pickle runs.

`pickle.loads` calls any function that a pickle names. This reader accepts only the built-in types, dates, Decimal and
UUID. It checks the opcodes first (`pickle_check`), because a small pickle can be expensive to load, and counts the
values afterwards, because one can refer to itself.
"""

from __future__ import annotations

import datetime
import decimal
import io
import pickle
import uuid
from collections.abc import Callable, Iterable
from typing import Any, cast

from worker.errors import InvalidPayload, format_error
from worker.queue.pickle_check import (
    CHOSEN,
    MAX_CONTAINERS,
    MAX_KEY_WEIGHT,
    MAX_LONG_NUMBERS,
    MAX_VALUES,
    OpcodeCheck,
    ensure_light_keys,
)

MAX_DEPTH = 200
#: Limit of elements that are passed to constructors of sets, decimals and byte arrays.
_MAX_CONSTRUCTED = 1_000_000


def read_pickle(raw: bytes, what: str, *, max_bytes: int) -> Any:
    """Return the value of a pickle.

    Args:
        raw: the pickle.
        what: name of the value for the error, for example `the payload`.
        max_bytes: longest pickle that is read.

    Raises:
        InvalidPayload: the pickle is too long, is not a pickle of plain values, or holds too many of them.
    """
    if len(raw) > max_bytes:
        raise InvalidPayload(f"{what} has {len(raw):,} bytes; the limit is {max_bytes:,}")
    try:
        OpcodeCheck(raw).run()
        value = _PlainUnpickler(raw).load()
        _check_size(value)
    except InvalidPayload as error:
        raise InvalidPayload(f"{what} {error}") from None
    except Exception as error:  # noqa: BLE001 - pickles fail with any error
        raise InvalidPayload(f"{what} is a pickle that cannot be read: {format_error(error)[:200]}") from None
    return value


class _Sealed(type):
    """A class that a pickle cannot change: the opcode BUILD sets attributes of the object on the stack."""

    def __setattr__(cls, name: str, value: Any) -> None:
        raise TypeError(f"{cls.__name__} cannot be changed")


class _UuidMaker(metaclass=_Sealed):
    """Replaces `uuid.UUID`, which a pickle creates empty and then fills."""

    __slots__ = ()

    def __new__(cls) -> Any:
        return object.__new__(uuid.UUID)


class _Constructor:
    """Replaces a type. It cannot be changed, and counts the elements that it receives.

    Args:
        make: builds the value.
        counter: shared counts of elements, of long decimals, and of the weights of elements of sets.
    """

    __slots__ = ("_counter", "_make")

    _counter: list[int]
    _make: Callable[..., Any]

    def __init__(self, make: Callable[..., Any], counter: list[int]) -> None:
        object.__setattr__(self, "_make", make)
        object.__setattr__(self, "_counter", counter)

    def __setattr__(self, name: str, value: Any) -> None:
        raise TypeError("a type cannot be changed")

    def __call__(self, *arguments: Any) -> Any:
        for argument in arguments:
            if isinstance(argument, int) and self._make in (bytearray, bytes):
                raise InvalidPayload("is a pickle that makes bytes of a number")
            if isinstance(argument, str | bytes | bytearray | list | tuple | set | frozenset | dict):
                self._counter[0] += len(argument)
                if self._make in (set, frozenset):
                    self._counter[2] += _weigh_keys(argument)
                    ensure_light_keys(self._counter[2])
        self._counter[0] += 1
        if self._make is decimal.Decimal and arguments and len(str(arguments[0])[:20]) > 18:
            self._counter[1] += 1
            if self._counter[1] > MAX_LONG_NUMBERS:
                raise InvalidPayload(f"holds more than {MAX_LONG_NUMBERS:,} decimals of more than 18 digits")
        if self._counter[0] > _MAX_CONSTRUCTED:
            raise InvalidPayload(f"is a pickle that constructs more than {_MAX_CONSTRUCTED:,} elements")
        return self._make(*arguments)


def _weigh_keys(keys: Iterable[Any]) -> int:
    """Return the weight of the elements of a set, as `pickle_check` weighs them, or one above the limit."""
    total, parts = 0, [key for key in keys if type(key) not in _LIGHT]
    while parts and total <= MAX_KEY_WEIGHT:
        part = parts.pop()
        total += CHOSEN
        if isinstance(part, tuple | frozenset):
            total += len(part)
            parts += [each for each in part if type(each) not in _LIGHT]
        elif isinstance(part, int) and part.bit_length() < 64:
            total -= CHOSEN
    return total


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Replaces `_codecs.encode`, with which protocol 2 writes bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise InvalidPayload("is a pickle that encodes text")
    return text.encode("latin-1")


_TYPES: dict[tuple[str, str], Callable[..., Any]] = {
    ("_codecs", "encode"): _encode_latin1,
    ("builtins", "bytearray"): bytearray,
    ("builtins", "bytes"): bytes,
    ("builtins", "complex"): complex,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "set"): set,
    ("datetime", "date"): datetime.date,
    ("datetime", "datetime"): datetime.datetime,
    ("datetime", "time"): datetime.time,
    ("datetime", "timedelta"): datetime.timedelta,
    ("datetime", "timezone"): datetime.timezone,
    ("decimal", "Decimal"): decimal.Decimal,
}
_TYPES |= {("__builtin__", name): value for (module, name), value in list(_TYPES.items()) if module == "builtins"}


#: Types that a pickle cannot change, and whose constructors take short values only.
_HARMLESS_TYPES: set[Any] = {
    datetime.date,
    datetime.datetime,
    datetime.time,
    datetime.timedelta,
    datetime.timezone,
}


class _PlainUnpickler(pickle.Unpickler):
    """Finds plain types only."""

    def __init__(self, raw: bytes) -> None:
        # A reader with `peek`: the unpickler reads ahead, instead of calling `read` for each value.
        super().__init__(io.BufferedReader(cast(Any, io.BytesIO(raw)), buffer_size=1 << 17))
        self._counter = [0, 0, 0]

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("uuid", "UUID"):
            return _UuidMaker
        if (module, name) == ("uuid", "SafeUUID"):
            return _Constructor(lambda value: uuid.SafeUUID.unknown, self._counter)
        make = _TYPES.get((module, name))
        if make is None:
            raise InvalidPayload(
                f"is a pickle of {module[:100]}.{name[:100]}: only plain types are read; pass "
                f"job_deserializer=pickle.loads if everyone who can write to Redis may run code here"
            )
        return make if make in _HARMLESS_TYPES else _Constructor(make, self._counter)


def _check_size(value: Any) -> None:
    """Reject values that are nested too deeply, or hold too many values."""
    containers = values = 0
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH + 1):
        below: list[Any] = []
        for one in level:
            if type(one) not in _CONTAINERS:
                _check_scalar(one)
                continue
            containers += 1
            values += len(one)
            if containers > MAX_CONTAINERS:
                raise InvalidPayload(f"holds more than {MAX_CONTAINERS:,} containers and objects")
            if values > MAX_VALUES:
                raise InvalidPayload(f"holds more than {MAX_VALUES:,} values")
            for parts in (one, one.values()) if type(one) is dict else (one,):
                if not _HARMLESS.issuperset(map(type, parts)):
                    below += [part for part in parts if type(part) not in _HARMLESS]
        if not below:
            return
        level = below
    raise InvalidPayload(f"is nested more than {MAX_DEPTH} levels deep")


def _check_scalar(value: Any) -> None:
    if isinstance(value, (_Constructor, type)):
        raise InvalidPayload("holds a type, which is not a value")
    if isinstance(value, uuid.UUID):
        str(value)  # raises if the pickle did not fill it


#: Types whose hashes cannot be chosen, or have few values of the same hash.
_LIGHT = {type(None), bool, float, str, bytes}
_CONTAINERS = {list, tuple, dict, set, frozenset}
_HARMLESS = {type(None), bool, int, float, str, bytes, bytearray, complex}
_HARMLESS |= {datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone, decimal.Decimal}
