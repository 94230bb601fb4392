"""Problems with keys of Redis that other clients wrote. Each is logged once, with the command that repairs it."""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from worker.queue import keys

logger = logging.getLogger("longhaul.keys")

_REPEAT_SECONDS = 600.0
_MOST_REMEMBERED = 1_000


class KeyProblem(NamedTuple):
    """A key of Redis that cannot be used as it is.

    Attributes:
        key: the key, printable.
        problem: the problem.
        command: the command that repairs the key, and its arguments, first the key.
    """

    key: str
    problem: str
    command: tuple[bytes | str, ...]

    @property
    def cure(self) -> str:
        """The arguments of `redis-cli` that repair the key, in a shell."""
        return " ".join(map(quote, self.command))

    def in_namespace(self, prefix: str) -> KeyProblem:
        """Return the problem with the name that the key has in Redis, in the namespace of a prefix."""
        if not prefix:
            return self
        count = 2 if self.command[0] == "RENAME" else 1
        verb, names, rest = self.command[0], self.command[1 : 1 + count], self.command[1 + count :]
        return KeyProblem(prefix + self.key, self.problem, (verb, *(_with_prefix(prefix, one) for one in names), *rest))

    def __str__(self) -> str:
        return f"{self.key} {self.problem}; to repair it, run: redis-cli {self.cure}"


def wrong_type(key: bytes | str, found: str = "", wanted: str = "") -> KeyProblem:
    """Return the problem of a key that has another type than the schema says.

    Args:
        key: the key.
        found: the type that TYPE returns; empty if it is not known.
        wanted: the type that it should have; that of the schema by default.
    """
    name = printable(key)
    known = keys.find(name)
    wanted = wanted or (known.type if known else "sorted set")  # a queue of another name is not in the schema
    problem = f"is {_TYPES.get(found, f'a {found}')}, not a {wanted}"
    return KeyProblem(name, problem, ("RENAME", key, _with_prefix("broken:", key)))


def wrong_value(key: bytes | str, value: bytes | str, *, field: bytes | str | None = None) -> KeyProblem:
    """Return the problem of a key, or of a field of a hash, whose value cannot be read."""
    where = "" if field is None else f" in field {printable(field)}"
    command = ("DEL", key) if field is None else ("HDEL", key, field)
    return KeyProblem(printable(key), f"has the invalid value {printable(value)[:100]!r}{where}", command)


def wrong_member(key: bytes | str, member: bytes | str, *, command: str = "SREM") -> KeyProblem:
    """Return the problem of a set, or a sorted set, with a member that cannot be a name."""
    return KeyProblem(printable(key), f"has the invalid member {printable(member)[:100]!r}", (command, key, member))


def from_script(raw: Sequence[Any]) -> KeyProblem:
    """Return the problem that a script has reported: key, kind and detail; see checks.lua."""
    key, kind, detail = (bytes(part) for part in raw)
    if kind == b"type":
        return wrong_type(key, detail.decode(errors="replace"))
    field, equals, value = detail.partition(b" = ")
    return wrong_value(key, value, field=field) if equals else wrong_value(key, detail)


def printable(text: bytes | str) -> str:
    """Return a text in one line: control characters, line breaks, and bytes that are not UTF-8 are escaped."""
    if isinstance(text, bytes):
        text = text.decode(errors="backslashreplace")
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def quote(text: bytes | str) -> str:
    """Return a name as an argument of `redis-cli` in a shell."""
    raw = text if isinstance(text, bytes) else text.encode(errors="surrogatepass")
    try:
        plain = raw.decode()
    except UnicodeDecodeError:
        plain = ""
    if plain and plain.isprintable():
        return shlex.quote(plain)
    # Bash's and zsh's own notation for bytes that cannot be typed.
    return "$'" + "".join(chr(one) if 32 < one < 127 and one not in b"'\\" else f"\\x{one:02x}" for one in raw) + "'"


class KeyProblemLog:
    """Logs each problem once, and again after ten minutes if it is still there.

    Args:
        prefix: the prefix of keys in Redis, behind which the problems name them.
    """

    def __init__(self, prefix: str = "") -> None:
        self._prefix = prefix
        self._logged_at: dict[KeyProblem, float] = {}

    def report(self, problems: Iterable[KeyProblem]) -> None:
        """Log new problems."""
        for problem in problems:
            now = time.monotonic()
            if now - self._logged_at.get(problem, -_REPEAT_SECONDS) < _REPEAT_SECONDS:
                continue
            if len(self._logged_at) >= _MOST_REMEMBERED:
                self._logged_at.clear()
            self._logged_at[problem] = now
            shown = problem.in_namespace(self._prefix)
            logger.warning("key problem key=%s problem=%s cure=redis-cli %s", shown.key, shown.problem, shown.cure)


def _with_prefix(prefix: str, key: bytes | str) -> bytes | str:
    return prefix.encode() + key if isinstance(key, bytes) else prefix + key


_TYPES = {"zset": "a sorted set", "": "of another type"}
