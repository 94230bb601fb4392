"""Pickles of plain values are read; all other pickles are rejected with one error."""

from __future__ import annotations

import contextlib
import datetime
import decimal
import pickle
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import InvalidPayload
from worker.queue.pickle_check import MAX_CONTAINERS, MAX_LONG_NUMBERS, MAX_STEPS, OpcodeCheck
from worker.queue.plain_pickle import read_pickle

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary()
    | st.binary().map(bytearray)
    | st.dates()
    | st.datetimes()
    | st.times()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.complex_numbers(allow_nan=False)
)
hashable = st.integers() | st.text() | st.dates() | st.uuids()
values = st.recursive(
    scalars | st.sets(hashable) | st.frozensets(hashable),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


def read(raw: bytes) -> Any:
    """Read a pickle of at most a megabyte."""
    return read_pickle(raw, "the payload", max_bytes=1_100_000)


@given(values, st.integers(2, pickle.HIGHEST_PROTOCOL))
def test_read_pickle_returns_plain_values_as_they_were(value: Any, protocol: int) -> None:
    assert read(pickle.dumps(value, protocol)) == value


@given(st.binary(max_size=200) | st.binary(max_size=200).map(lambda raw: b"\x80\x04" + raw))
def test_read_pickle_raises_one_error_for_junk(raw: bytes) -> None:
    with contextlib.suppress(InvalidPayload):
        read(raw)


@given(values, st.data())
def test_read_pickle_raises_one_error_for_a_pickle_that_was_changed(value: Any, data: st.DataObject) -> None:
    raw = bytearray(pickle.dumps(value))
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InvalidPayload):
        read(bytes(raw))


class Trap:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('the code of a pickle has run')",))


class Mine:
    """A class of a user."""


def _doubled(times: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(times):
        value = [value, value]
    return value


def _cycle() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


def _many_sets() -> bytes:
    """A list of 100,000 numbers, of which a set is made a thousand times."""
    numbers = pickle.dumps(list(range(100_000)), 2)
    return b"\x80\x02c__builtin__\nset\nq\x01" + numbers[2:-1] + b"q\x02" + b"(h\x01h\x02\x85R" * 1_000 + b"."


def _colliding_integers(count: int) -> bytes:
    """A set of integers that have the same hash: `pickle.loads` takes minutes for 1 MB."""
    numbers = (((2**61 - 1) * n + 1).to_bytes(10, "little") for n in range(1, count))
    return b"\x80\x04\x8f(" + b"".join(b"\x8a\x0a" + number for number in numbers) + b"\x90."


def _key_of_doubled_tuples(levels: int) -> bytes:
    """A key whose hash takes a time that doubles with each level: `pickle.loads` never returns."""
    raw = b"\x80\x02K\x01\x85q\x00"
    for level in range(levels):
        raw += b"h%ch%c\x86q%c0" % (level, level, level + 1)
    return raw + b"}h%cNs." % levels


def _complex_numbers(count: int) -> bytes:
    """The opcodes of complex numbers that have the same hash."""
    parts = (pickle.dumps((float(-1_000_003 * n), float(n)), 2)[2:-3] for n in range(1, count))
    return b"c__builtin__\ncomplex\nq\x000(" + b"".join(b"h\x00" + part + b"R" for part in parts)


def _pairs_of_one_hash(count: int) -> set[tuple[int, int]]:
    """Pairs of integers below 2**63 that have the same hash."""
    first, second, start, space = 11400714785074694791, 14029467366897019727, 2870177450012600261, 2**64
    inverse, pairs, number = pow(second, -1, space), set(), 0
    while len(pairs) < count:
        number += 1
        mixed = (start + number * second) % space
        mixed = ((mixed << 31) | (mixed >> 33)) % space * first % space
        other = (12345 - mixed) * inverse % space
        other -= space if other >= 2**63 else 0
        if abs(other) < 2**60 and other != -1:
            pairs.add((number, other))
    return pairs


def _same_set_many_times() -> bytes:
    """Integers that have the same hash, of which a set is made ten times."""
    numbers = b"".join(pickle.dumps((2**61 - 1) * n + 1, 2)[2:-1] + b"\x940" for n in range(1, 1_000))
    one = b"\x8f(" + b"".join(b"j" + index.to_bytes(4, "little") for index in range(999)) + b"\x90"
    return b"\x80\x04" + numbers + one * 10 + b"."


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        pytest.param(pickle.dumps({"a": Trap()}), "builtins.exec", id="code"),
        pytest.param(pickle.dumps(Mine()), "only plain types", id="class"),
        pytest.param(pickle.dumps({"f": "x"}, 0), "opcode", id="protocol 0"),
        pytest.param(b"\x80\x04Nr\xff\xff\xff\x7f.", "opcode b'r'", id="memo of 2 GB"),
        pytest.param(b"\x80\x04K.r\xff\xff\xff\x7f.", "opcode b'r'", id="memo of 2 GB behind a false STOP"),
        pytest.param(b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.", "cannot be read", id="length of a terabyte"),
        pytest.param(b"\x80\x02c__builtin__\nbytearray\n\x8a\x05\x00\x00\x00\x00\x01\x85R.", "of a number", id="4 GB"),
        pytest.param(_many_sets(), "constructs more than", id="sets"),
        pytest.param(_colliding_integers(80_000), "UUIDs, or integers", id="integers with one hash"),
        pytest.param(pickle.dumps([uuid.uuid4() for _ in range(MAX_LONG_NUMBERS + 1)]), "UUIDs", id="many UUIDs"),
        pytest.param(pickle.dumps([decimal.Decimal(10**30 + n) for n in range(2_001)]), "18 digits", id="decimals"),
        pytest.param(b"\x80\x04](" + b"N" * 600_000 + b"e.", "500,000 values", id="many values"),
        pytest.param(pickle.dumps(_doubled(60)), "containers", id="doubled 60 times"),
        pytest.param(pickle.dumps([[]] * (MAX_CONTAINERS + 1)), "containers", id="many containers"),
        pytest.param(_key_of_doubled_tuples(60), "too large keys", id="key that refers to itself"),
        pytest.param(pickle.dumps(_pairs_of_one_hash(800)), "too large keys", id="pairs of one hash"),
        pytest.param(pickle.dumps({(n, n) for n in range(800)}, 2), "too large keys", id="set of pairs, protocol 2"),
        pytest.param(b"\x80\x04\x8f" + _complex_numbers(2_000) + b"\x90.", "too large keys", id="complex of one hash"),
        pytest.param(b"\x80\x04" + _complex_numbers(2_000) + b"\x91.", "too large keys", id="frozenset of these"),
        pytest.param(_same_set_many_times(), "too large keys", id="the same set many times"),
        pytest.param(b"\x80\x04](" + b"N0" * 110_000 + b".", "opcodes that build", id="many opcodes"),
        pytest.param(b"\x80\x02Nq\x00N\x94.", "two protocols", id="two protocols"),
        pytest.param(b"\x80\x04(0N\x86.", "has not pushed", id="too few values"),
        pytest.param(b"\x80\x04Ne.", "has not set", id="no mark"),
        pytest.param(pickle.dumps(_cycle()), "levels deep", id="cycle"),
        pytest.param(pickle.dumps(1 << 7_000_000), "digits", id="large integer"),
        pytest.param(b"\x80\x02c__builtin__\nset\n.", "holds a type", id="type"),
        pytest.param(b"\x80\x02cuuid\nUUID\n)\x81.", "cannot be read", id="empty UUID"),
        pytest.param(b"\x80\x02cuuid\nUUID\nN}X\x03\x00\x00\x00intK\x01s\x86b.", "be changed", id="patched class"),
        pytest.param(b"", "cannot be read", id="empty"),
        pytest.param(b"\x80\x04" + b"N" * 1_200_000 + b".", "the limit is", id="too long"),
    ],
)
def test_read_pickle_refuses(raw: bytes, words: str) -> None:
    with pytest.raises(InvalidPayload, match=words):
        read(raw)


def test_read_pickle_leaves_types_as_they_are() -> None:
    before = set(vars(uuid.UUID)), decimal.Decimal("1.50").as_tuple()
    read(pickle.dumps([uuid.uuid4(), decimal.Decimal("1.50")]))
    assert (set(vars(uuid.UUID)), decimal.Decimal("1.50").as_tuple()) == before


MEGABYTE = 1_000_000


def _repeated(before: bytes, part: bytes, after: bytes) -> bytes:
    return before + part * ((MEGABYTE - len(before) - len(after)) // len(part)) + after


#: Pickles of 1 MB, of plain values and of hostile ones.
LARGE = {
    "text": pickle.dumps("x" * 999_900),
    "integers": pickle.dumps(list(range(210_000))),
    "floats": pickle.dumps([n / 7 for n in range(110_000)]),
    "texts": pickle.dumps([f"key{n}" for n in range(75_000)]),
    "dict": pickle.dumps({f"k{n}": n for n in range(72_000)}),
    "dicts": pickle.dumps([{"id": n, "name": f"n{n}", "ok": True} for n in range(19_000)]),
    "dates": pickle.dumps([datetime.date(2020, 1, 1) + datetime.timedelta(n % 9_999) for n in range(19_000)]),
    "decimals": pickle.dumps([decimal.Decimal(n) / 8 for n in range(19_000)]),
    "UUIDs": pickle.dumps([uuid.uuid4() for _ in range(1_900)]),
    "None": _repeated(b"\x80\x04](", b"N", b"e."),
    "empty lists": _repeated(b"\x80\x04](", b"]", b"e."),
    "empty sets": _repeated(b"\x80\x04](", b"\x8f", b"e."),
    "marks": _repeated(b"\x80\x04", b"(", b"."),
    "memo": _repeated(b"\x80\x02N", b"q\x00h\x00", b"."),
    "memoized": _repeated(b"\x80\x04", b"N\x94", b"."),
    "short bytes": _repeated(b"\x80\x04](", b"C\x01x", b"e."),
    "frames": _repeated(b"\x80\x04", b"\x95" + bytes(8), b"N."),
    "short integers": _repeated(b"\x80\x02](", b"\x8a\x01\x05", b"e."),
    "nested tuples": _repeated(b"\x80\x02N", b"\x85", b"."),
    "GLOBAL": _repeated(b"\x80\x02](", b"c__builtin__\nset\n", b"e."),
    "STACK_GLOBAL": _repeated(b"\x80\x04](\x8c\x08builtins\x94\x8c\x03set\x94", b"h\x00h\x01\x93", b"e."),
    "REDUCE": _repeated(b"\x80\x02](c__builtin__\nset\nq\x00", b"h\x00)R", b"e."),
    "dicts of one": _repeated(b"\x80\x02](", b"}X\x01\x00\x00\x00aNs", b"e."),
    "colliding integers": _colliding_integers(80_000),
    "large integer": pickle.dumps(1 << 7_900_000),
}


#: Pickles that hold nothing but texts and small numbers.
PLAIN = ("text", "integers", "floats", "texts", "dict")


@pytest.mark.parametrize("name", LARGE)
def test_the_work_for_a_large_pickle_is_limited(name: str) -> None:
    raw = LARGE[name]
    assert len(raw) <= MEGABYTE + 100_000
    check = OpcodeCheck(raw)
    with contextlib.suppress(InvalidPayload):
        check.run()
    assert check.steps <= (1_000 if name in PLAIN else MAX_STEPS)
    if name in (*PLAIN, "dicts", "dates", "decimals", "UUIDs"):
        read(raw)
