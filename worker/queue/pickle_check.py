"""Checks the opcodes of a pickle before it is loaded: a small pickle can be very expensive to load.

A memo index of 4 GB allocates a table, `set` can be called a hundred thousand times, and the hashes of tuples, complex
numbers, decimals, dates, UUIDs and long integers can be chosen: a set of values that all have the same hash takes a
time that grows with the square of their number, and the hash of a tuple of tuples that refer to each other one that
doubles with each level. So the check follows the unpickler's stack, with the weight of each value in place of the
value, and limits the weights of all keys of dicts and elements of sets.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable

from worker.errors import InvalidPayload

#: Limit of containers, dates, decimals and UUIDs in one value. Each reference to a container counts.
MAX_CONTAINERS = 20_000
#: Limit of numbers and texts in one value.
MAX_VALUES = 500_000
#: Limit of integers from 2**63 on, of UUIDs, and of decimals of more than 18 digits.
MAX_LONG_NUMBERS = 2_000
#: Limit of the weights of all keys: 2 for a value whose hash can be chosen, and 1 for each part of a tuple.
MAX_KEY_WEIGHT = 3_000
#: Limit of opcodes that are followed one by one. Those of texts and small numbers are counted together.
MAX_STEPS = 100_000
_MAX_INT_BYTES = 1_750  # about 4,200 decimal digits: Python does not print more
#: Weight of a value whose hash can be chosen.
CHOSEN = 2

_STOP = 0x2E

#: A length of one byte, and as many bytes: a regular expression counts faster than a loop.
_LENGTHS_TO_255 = b"|".join(b"%b.{%d}" % (re.escape(bytes([length])), length) for length in range(256))
_WIDE_TO_255 = b"|".join(b"%b\0\0\0.{%d}" % (re.escape(bytes([length])), length) for length in range(256))
_LENGTHS_TO_8 = b"|".join(b"%b.{%d}" % (re.escape(bytes([length])), length) for length in range(9))
#: Opcodes that push a number, a text or a constant, and maybe memoize it.
_PLAIN = (
    rb"(?:[N\x88\x89]|K.|M..|J....|G.{8}|[CU\x8c](?:"
    + _LENGTHS_TO_255
    + rb")|[XTB](?:"
    + _WIDE_TO_255
    + rb")|\x8a(?:"
    + _LENGTHS_TO_8
    + rb"))"
)


@functools.cache
def _patterns() -> tuple[tuple[re.Pattern[bytes], re.Pattern[bytes]], tuple[re.Pattern[bytes], re.Pattern[bytes]]]:
    """Return the patterns of a run of such opcodes and of one, with references to the memo, and without them.

    They are compiled at the first pickle: that takes 30 ms, a tenth of the import of a client.
    """
    with_memo = rb"(?:" + _PLAIN + rb"|h.|j....)"  # for as long as no value in the memo has a weight
    return _compiled(with_memo), _compiled(_PLAIN)


def _compiled(opcode: bytes) -> tuple[re.Pattern[bytes], re.Pattern[bytes]]:
    run = re.compile(rb"(?:" + opcode + rb"\x94?){1,20000}+", re.DOTALL)
    return run, re.compile(opcode + rb"(\x94?)", re.DOTALL)


class OpcodeCheck:
    """Follows the opcodes of one pickle.

    Attributes:
        steps: number of opcodes that were followed one by one.
        key_weight: weight of all keys so far.
    """

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._stack: list[int] = []
        self._marks: list[int] = []
        self._memo: dict[int, int] = {}  # the values that have a weight
        self._memoized = 0  # number of MEMOIZE opcodes
        self._has_puts = False
        self._containers = self._objects = self._values = self._long_numbers = 0
        self.steps = self.key_weight = 0

    def run(self) -> None:
        """Check the pickle up to its end.

        Raises:
            InvalidPayload: it is too expensive to load, or not a pickle of plain values.
        """
        at, raw, end, memo, handlers, structural = 0, self._raw, len(self._raw), self._memo, _HANDLERS, _STRUCTURAL
        with_memo, without_memo = _patterns()
        for self.steps in range(1, MAX_STEPS + 1):
            opcode = raw[at] if at < end else _STOP
            if (handle := structural.get(opcode)) is not None:
                at = handle(self, opcode, at + 1)
                continue
            run, one = without_memo if memo else with_memo
            while (found := run.match(raw, at)) is not None:
                parts = one.findall(raw, at, found.end())
                self._push_plain(len(parts), parts.count(b"\x94"))
                at = found.end()
            opcode = raw[at] if at < end else _STOP
            if opcode == _STOP:  # the unpickler rejects a premature end
                return
            handle = handlers.get(opcode)
            if handle is None:
                raise InvalidPayload(
                    f"is a pickle with the opcode {raw[at : at + 1]!r}, which clients of arq do not write"
                )
            at = handle(self, opcode, at + 1)
        raise InvalidPayload(f"has more than {MAX_STEPS:,} opcodes that build containers")

    def _push_plain(self, count: int, memoized: int) -> None:
        if memoized:
            self._memoized += memoized
            self._ensure_one_protocol()
        self._values += count
        if self._values > MAX_VALUES:
            raise InvalidPayload(f"holds more than {MAX_VALUES:,} values")
        self._stack.extend([0] * count)

    def _build(self, weight: int) -> None:
        self._containers += 1
        if self._containers > MAX_CONTAINERS:
            raise InvalidPayload(f"holds more than {MAX_CONTAINERS:,} containers and objects")
        self._stack.append(weight)

    def _pop(self, count: int) -> list[int]:
        stack = self._stack
        start = len(stack) - count
        if start < (self._marks[-1] if self._marks else 0):
            raise InvalidPayload("is a pickle that cannot be read: it takes a value that it has not pushed")
        taken = stack[start:]
        del stack[start:]
        return taken

    def _pop_marked(self) -> list[int]:
        if not self._marks:
            raise InvalidPayload("is a pickle that cannot be read: it takes values from a mark that it has not set")
        mark, stack = self._marks.pop(), self._stack  # no opcode takes values below the last mark
        taken = stack[mark:]
        del stack[mark:]
        return taken

    # --- one method for each kind of opcode, which returns the place of the next one

    def _skip(self, opcode: int, at: int) -> int:
        return at + (8 if opcode == 0x95 else 1)

    def _mark(self, opcode: int, at: int) -> int:
        self._marks.append(len(self._stack))
        return at

    def _empty(self, opcode: int, at: int) -> int:
        self._build(0)
        return at

    def _tuple(self, opcode: int, at: int) -> int:
        self._build(_weigh_tuple(self._pop(opcode - 0x84)))
        return at

    def _memoize(self, opcode: int, at: int) -> int:
        index = self._memoized
        self._memoized = index + 1
        self._put(index)
        return at

    def _put_at(self, opcode: int, at: int) -> int:
        end = at + (1 if opcode == 0x71 else 4)
        index = int.from_bytes(self._raw[at:end], "little")
        if index > len(self._raw):
            raise InvalidPayload(f"is a pickle with the opcode {bytes([opcode])!r} and a place of {index:,}")
        self._has_puts = True
        self._put(index)
        return end

    def _put(self, index: int) -> None:
        self._ensure_one_protocol()
        stack, marks = self._stack, self._marks
        if len(stack) <= (marks[-1] if marks else 0):
            raise InvalidPayload("is a pickle that cannot be read: it takes a value that it has not pushed")
        weight = stack[-1]
        if weight:
            self._memo[index] = weight
        elif self._memo:
            self._memo.pop(index, None)

    def _ensure_one_protocol(self) -> None:
        """Reject opcodes that number the memo beside ones that do not, so that each place is known."""
        if self._has_puts and self._memoized:
            raise InvalidPayload("is a pickle of two protocols")

    def _get(self, opcode: int, at: int) -> int:
        end = at + (1 if opcode == 0x68 else 4)
        self._push_plain(1, 0)
        self._stack[-1] = self._memo.get(int.from_bytes(self._raw[at:end], "little"), 0)
        return end

    def _set_item(self, opcode: int, at: int) -> int:
        self._count_keys(self._pop(2)[:1])
        return at

    def _set_items(self, opcode: int, at: int) -> int:
        self._count_keys(self._pop_marked()[::2])
        return at

    def _add_items(self, opcode: int, at: int) -> int:
        self._count_keys(self._pop_marked())
        return at

    def _count_keys(self, weights: Iterable[int]) -> None:
        self.key_weight += sum(weights)
        ensure_light_keys(self.key_weight)

    def _marked(self, opcode: int, at: int) -> int:
        """Follow an opcode that takes all values above the last mark, and may build a container of them."""
        taken = self._pop_marked()
        if opcode == 0x74:  # TUPLE
            self._build(_weigh_tuple(taken))
        elif opcode == 0x91:  # FROZENSET
            self._count_keys(taken)
            self._build(_weigh_tuple(taken))
        elif opcode == 0x64:  # DICT
            self._count_keys(taken[::2])
            self._build(0)
        elif opcode == 0x6C:  # LIST
            self._build(0)
        return at

    def _take(self, opcode: int, at: int) -> int:
        if opcode == 0x30 and self._marks and self._marks[-1] == len(self._stack):  # POP takes a mark, too
            self._marks.pop()
        else:
            self._pop(1)
        return at

    def _duplicate(self, opcode: int, at: int) -> int:
        [weight] = self._pop(1)
        self._push_plain(2, 0)
        self._stack[-2:] = weight, weight
        return at

    def _object(self, opcode: int, at: int) -> int:
        self._pop(3 if opcode == 0x92 else 2)
        self._objects += 1
        if self._objects > MAX_CONTAINERS:
            raise InvalidPayload(f"holds more than {MAX_CONTAINERS:,} containers and objects")
        self._stack.append(CHOSEN)
        return at

    def _text(self, opcode: int, at: int) -> int:
        start = at + (4 if opcode in b"TXB" else 8)
        self._push_plain(1, 0)
        return start + int.from_bytes(self._raw[at:start], "little")

    def _long(self, opcode: int, at: int) -> int:
        start = at + (1 if opcode == 0x8A else 4)
        length = int.from_bytes(self._raw[at:start], "little")
        if length > _MAX_INT_BYTES:
            raise InvalidPayload("has an integer of more than 4,200 digits")
        self._long_numbers += 1
        if self._long_numbers > MAX_LONG_NUMBERS:
            raise InvalidPayload(f"holds more than {MAX_LONG_NUMBERS:,} UUIDs, or integers of more than 64 bits")
        self._stack.append(CHOSEN)
        return start + length

    def _global(self, opcode: int, at: int) -> int:
        if opcode == 0x93:  # STACK_GLOBAL
            self._pop(2)
        else:
            at = self._raw.find(b"\n", self._raw.find(b"\n", at) + 1) + 1
            if at == 0:
                raise InvalidPayload("is a pickle that ends too early")
        self._build(0)
        return at


_HANDLERS: dict[int, Callable[[OpcodeCheck, int, int], int]] = {
    opcode: handle
    for opcodes, handle in (
        (b"\x80\x95", OpcodeCheck._skip),
        (b"(", OpcodeCheck._mark),
        (b"]})\x8f", OpcodeCheck._empty),
        (b"\x85\x86\x87", OpcodeCheck._tuple),
        (b"\x94", OpcodeCheck._memoize),
        (b"qr", OpcodeCheck._put_at),
        (b"hj", OpcodeCheck._get),
        (b"s", OpcodeCheck._set_item),
        (b"u", OpcodeCheck._set_items),
        (b"\x90", OpcodeCheck._add_items),
        (b"tdle1\x91", OpcodeCheck._marked),
        (b"ab0", OpcodeCheck._take),
        (b"2", OpcodeCheck._duplicate),
        (b"R\x81\x92", OpcodeCheck._object),
        (b"TXB\x8d\x8e\x96", OpcodeCheck._text),
        (b"\x8a\x8b", OpcodeCheck._long),
        (b"c\x93", OpcodeCheck._global),
    )
    for opcode in opcodes
}
#: Opcodes that no run of plain values begins with.
_STRUCTURAL = {opcode: handle for opcode, handle in _HANDLERS.items() if opcode not in b"hjTXB\x8a"}


def ensure_light_keys(weight: int) -> None:
    """Raise `InvalidPayload` if the keys of dicts and the elements of sets are too expensive to hash and compare."""
    if weight > MAX_KEY_WEIGHT:
        raise InvalidPayload(
            "has too many or too large keys of dicts and elements of sets that are neither texts nor numbers"
        )


def _weigh_tuple(parts: list[int]) -> int:
    return min(CHOSEN + len(parts) + sum(parts), MAX_KEY_WEIGHT + 1)
