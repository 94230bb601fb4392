"""Reads pickles of plain values, as stock arq clients send them. No code of a pickle runs.

`pickle.loads` calls any function that a pickle names. This reader accepts only the built-in types, dates, Decimal and
UUID. A small pickle can also be expensive: an index of the memo of 4 GB, a set that is built a hundred thousand times,
or a value that refers to itself. So the reader checks the opcodes first, and counts the values afterwards.
"""

from __future__ import annotations

import datetime
import decimal
import io
import pickle
import re
import uuid
from collections.abc import Callable
from typing import Any, cast

from worker.errors import InvalidPayload, format_error

#: Limit of containers, dates, decimals and UUIDs in one value. Each reference to a container counts.
MAX_CONTAINERS = 20_000
#: Limit of numbers and texts in one value.
MAX_VALUES = 500_000
#: Limit of integers from 2**63 on, of UUIDs, and of decimals of more than 18 digits: an attacker can choose these so
#: that all have the same hash, and the time to build a set or a dict of them grows with the square of their number.
MAX_LONG_NUMBERS = 2_000
MAX_DEPTH = 200
#: Limit of elements that are passed to constructors of sets, decimals and byte arrays.
_MAX_CONSTRUCTED = 1_000_000
_MAX_INT_BYTES = 1_750  # about 4,200 decimal digits: Python does not print more

#: A length of one byte, and as many bytes: a regular expression counts faster than a loop.
_LENGTHS_TO_255 = b"|".join(b"%b.{%d}" % (re.escape(bytes([length])), length) for length in range(256))
_LENGTHS_TO_8 = b"|".join(b"%b.{%d}" % (re.escape(bytes([length])), length) for length in range(9))
#: Sequences of opcodes of protocols 2 to 5 that build no container. Opcodes of text (protocols 0 and 1) are excluded.
_RUN = re.compile(
    rb"(?:[(0-2Nabesu\x88\x89\x90\x94]++|(?:K.)++|(?:M..)++|(?:J....)++|(?:[hq\x80].)++|(?:G.{8})++"
    rb"|(?:[CU\x8c](?:" + _LENGTHS_TO_255 + rb")[\x94]?+)++|(?:\x8a(?:" + _LENGTHS_TO_8 + rb"))++|j....|\x95.{8})*+",
    re.DOTALL,
)
#: An opcode that builds a container or an object; a tuple of arguments counts with its call.
_BUILD = re.compile(rb"[\x85-\x87](?:\x94|q.|r....)?R|[)\]}tldoR\x81\x85-\x87\x8f\x91-\x93]", re.DOTALL)
#: Opcodes that are followed by a length, and the number of its bytes.
_LENGTHS = {b"T": 4, b"X": 4, b"B": 4, b"\x8d": 8, b"\x8e": 8, b"\x96": 8}


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
        _check_opcodes(raw)
        value = _PlainUnpickler(raw).load()
        _check_size(value)
    except InvalidPayload as error:
        raise InvalidPayload(f"{what} {error}") from None
    except Exception as error:  # noqa: BLE001 - pickles fail with any error
        raise InvalidPayload(f"{what} is a pickle that cannot be read: {format_error(error)[:200]}") from None
    return value


def _check_opcodes(raw: bytes) -> None:
    """Reject pickles that are expensive to load, before they are loaded.

    These are opcodes of text, of extensions, memo indices that would make the unpickler allocate a large table, and too
    many containers, objects or long integers.
    """
    at, size, containers, long_numbers = 0, len(raw), 0, 0
    while at < size:
        at = _RUN.match(raw, at).end()  # type: ignore[union-attr]  # it matches the empty text
        built = _BUILD.match(raw, at)
        if built is not None:
            at = built.end()
            containers += 1
            if containers > MAX_CONTAINERS:
                raise InvalidPayload(f"holds more than {MAX_CONTAINERS:,} containers and objects")
            continue
        opcode = raw[at : at + 1]
        if opcode in (b".", b""):  # the end, or a premature end, which the unpickler rejects
            return
        width = _LENGTHS.get(opcode)
        if width is not None:
            at += 1 + width + int.from_bytes(raw[at + 1 : at + 1 + width], "little")
        elif opcode in (b"\x8a", b"\x8b"):
            width = 1 if opcode == b"\x8a" else 4
            length = int.from_bytes(raw[at + 1 : at + 1 + width], "little")
            if length > _MAX_INT_BYTES:
                raise InvalidPayload("has an integer of more than 4,200 digits")
            long_numbers += 1
            if long_numbers > MAX_LONG_NUMBERS:
                raise InvalidPayload(f"holds more than {MAX_LONG_NUMBERS:,} UUIDs, or integers of more than 64 bits")
            at += 1 + width + length
        elif opcode == b"r" and int.from_bytes(raw[at + 1 : at + 5], "little") <= size:
            at += 5
        elif opcode == b"c":
            at = raw.find(b"\n", raw.find(b"\n", at + 1) + 1) + 1
            if at == 0:
                raise InvalidPayload("is a pickle that ends too early")
            containers += 1
            if containers > MAX_CONTAINERS:
                raise InvalidPayload(f"holds more than {MAX_CONTAINERS:,} containers and objects")
        elif opcode == b"b":
            at += 1
        else:
            raise InvalidPayload(f"is a pickle with the opcode {opcode!r}, which clients of arq do not write")


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
        counter: shared counts of elements and of long decimals.
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
        self._counter[0] += 1
        if self._make is decimal.Decimal and arguments and len(str(arguments[0])[:20]) > 18:
            self._counter[1] += 1
            if self._counter[1] > MAX_LONG_NUMBERS:
                raise InvalidPayload(f"holds more than {MAX_LONG_NUMBERS:,} decimals of more than 18 digits")
        if self._counter[0] > _MAX_CONSTRUCTED:
            raise InvalidPayload(f"is a pickle that constructs more than {_MAX_CONSTRUCTED:,} elements")
        return self._make(*arguments)


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
        self._counter = [0, 0]

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


_CONTAINERS = {list, tuple, dict, set, frozenset}
_HARMLESS = {type(None), bool, int, float, str, bytes, bytearray, complex}
_HARMLESS |= {datetime.date, datetime.datetime, datetime.time, datetime.timedelta, datetime.timezone, decimal.Decimal}
