"""Reads the keys of the operators' commands in pages.

A script may give a command for each of 100,000 runs. In one answer, a set of that size would block Redis and this event
loop for a tenth of a second at each change, so every key is scanned in pages of some hundred entries. A scan returns
each entry that the key has from its beginning to its end. A change during the scan is reported by the listener, and the
key is scanned again.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from redis.exceptions import RedisError, ResponseError

from worker.queue import keys
from worker.queue.key_problems import KeyProblem, wrong_member, wrong_type, wrong_value
from worker.queue.payload import read_run_id

#: The keys of all commands, each with the Redis command that scans it.
SCANS = {
    keys.PAUSED: "SSCAN",
    keys.CANCELLED: "SSCAN",
    keys.ABORT: "ZSCAN",
    keys.PACE: "HSCAN",
    keys.LIMITS: "HSCAN",
    keys.RATES: "HSCAN",
    keys.DRAINED: "SSCAN",
    keys.RETRIED: "SSCAN",
    keys.PARKED: "SSCAN",
}
#: The commands that remove an entry of keys whose entries have values.
_REMOVERS = {keys.ABORT: "ZREM", keys.LIMITS: "HDEL", keys.RATES: "HDEL"}
_PAGE = 500
#: Entries that Redis looks at in one command for those by argument: it returns only these.
_SEARCHED = 5_000
#: Most problems of one key that are reported: a key with thousands of bad entries must not fill the log.
_MOST_PROBLEMS = 20

Command = Sequence[Any]
#: Sends commands, and returns their answers. The answer of a rejected command is its error.
Send = Callable[[Sequence[Command]], Awaitable[Sequence[Any]]]


class CommandScan:
    """One scan of all keys.

    Attributes:
        names: the names in each key.
        paces: the rows per second that operators have set, by name.
        problems: the problems that were found.
        unreadable: the keys that have another type than they should.
        pages: the number of round trips.
        exists: whether one of the awaited keys exists.
    """

    def __init__(self) -> None:
        self.names: dict[str, set[str]] = {key: set() for key in SCANS}
        self.paces: dict[str, float] = {}
        self.problems: list[KeyProblem] = []
        self.unreadable: set[str] = set()
        self.pages = 0
        self.exists = False
        self._found: dict[str, int] = {}

    async def run(self, send: Send, awaited: Sequence[str]) -> None:
        """Scan the keys.

        Args:
            send: sends commands.
            awaited: further keys, of which only the existence matters.

        Raises:
            RedisError: Redis does not answer, or rejects a command for another reason than the type of its key.
        """
        cursors = dict.fromkeys(SCANS, 0)
        beside: list[Command] = [("EXISTS", *awaited)] if awaited else []
        while cursors:
            commands = [(SCANS[key], key, cursor, "COUNT", _PAGE) for key, cursor in cursors.items()]
            answers = await send([*commands, *beside])
            if beside:
                beside, self.exists = [], bool(check_answer(answers[-1]))
            cursors = {
                key: next_ for key, answer in zip(cursors, answers, strict=False) if (next_ := self._add(key, answer))
            }
            self.pages += 1

    def _add(self, key: str, answer: Any) -> int:
        """Add a page. Return the cursor of the next one; 0 after the last one."""
        if isinstance(check_answer(answer), ResponseError):
            self.unreadable.add(key)
            self.problems.append(wrong_type(key))
            return 0
        cursor, page = answer
        if key == keys.PACE:
            self._add_paces(_pairs(page))
        elif key in _REMOVERS:
            self._add_names(key, (member for member, _ in _pairs(page)), remove=_REMOVERS[key])
        else:
            self._add_names(key, page)
        return int(cursor)

    def _add_names(self, key: str, members: Iterable[bytes], *, remove: str = "SREM") -> None:
        names = self.names[key]
        for member in members:
            name = read_run_id(member)
            if name is not None:
                names.add(name)
            elif self._may_report(key):
                self.problems.append(wrong_member(key, member, command=remove))

    def _add_paces(self, fields: Iterable[tuple[bytes, bytes]]) -> None:
        for field, raw in fields:
            name, pace = read_run_id(field), to_pace(raw)
            if name is not None and pace is not None:
                self.paces[name] = pace
            elif self._may_report(keys.PACE):
                self.problems.append(wrong_value(keys.PACE, raw, field=field))

    def _may_report(self, key: str) -> bool:
        self._found[key] = self._found.get(key, 0) + 1
        return self._found[key] <= _MOST_PROBLEMS


async def find_conditions(send: Send) -> dict[str, set[str]]:
    """Return the entries of commands by argument, by key. Redis looks for them, so that no other entry is sent.

    Raises:
        RedisError: Redis does not answer.
    """
    cursors = dict.fromkeys((keys.PAUSED, keys.CANCELLED), 0)
    found: dict[str, set[str]] = {key: set() for key in cursors}
    while cursors:
        given = [("SSCAN", key, cursor, "MATCH", r"*\?*", "COUNT", _SEARCHED) for key, cursor in cursors.items()]
        answers = dict(zip(cursors, await send(given), strict=True))
        for key, answer in answers.items():
            if isinstance(check_answer(answer), ResponseError):
                del found[key]  # the next scan reports it
                cursors[key] = 0
                continue
            cursor, page = answer
            found[key] |= {name for member in page if (name := read_run_id(member)) is not None}
            cursors[key] = int(cursor)
        cursors = {key: cursor for key, cursor in cursors.items() if cursor}
    return found


def check_answer(answer: Any) -> Any:
    """Return an answer, or the error that says that its key has another type.

    Raises:
        RedisError: the answer is another error.
    """
    if isinstance(answer, RedisError) and not is_wrong_type(answer):
        raise answer
    return answer


def is_wrong_type(error: BaseException) -> bool:
    """Return whether an error says that a key has another type."""
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)


def to_pace(raw: bytes | None) -> float | None:
    """Return a number of rows per second; None for no number, or one that is no pace."""
    try:
        value = math.nan if raw is None else float(raw)
    except ValueError:
        return None
    return value if 0 < value < math.inf else None


def _pairs(page: Any) -> Iterable[tuple[Any, Any]]:
    """Return the pairs of a page of a hash or a sorted set: redis-py has made a dict or pairs of its flat list."""
    if isinstance(page, dict):
        return page.items()
    if page and isinstance(page[0], tuple):
        return list(page)
    return zip(page[::2], page[1::2], strict=True)
