"""What follows a run, as payloads propagate it.

`then` is a list of calls, each an object with `f` and `k`, and, where they are needed, `id`, `q` queue, `d` delay in
ms, `p` priority, `x` ms after which it has expired, `v` mark of the signature, `r` the argument that gets the result of
the one before.
`g` is its group: id, place in it from 1, and whether its result is wanted. The last one of a chain carries the group of
the first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from worker.errors import InvalidPayload

_KINDS = {"id": str, "f": str, "k": dict, "v": str, "q": str, "d": int, "p": int, "x": int, "r": str}


class Member(NamedTuple):
    """A run's place in a group.

    Attributes:
        group: id of the group.
        place: from 1.
        wanted: whether the callback gets its result.
    """

    group: str
    place: int
    wanted: bool

    @classmethod
    def read(cls, value: Any) -> Member | None:
        """Return the member that a payload says it is."""
        if value is None:
            return None
        match value:
            case [str(group), int(place), bool() | 0 | 1 as wanted] if group and place >= 1:
                return cls(group, place, bool(wanted))
        raise InvalidPayload(
            f"the payload's g is not a group, a place from 1, and whether a result is wanted: {value!r}"
        )


def check_then(value: Any) -> tuple[dict[str, Any], ...]:
    """Return the calls that follow, as a payload has them.

    Raises:
        InvalidPayload: they are none.
    """
    if not isinstance(value, list):
        raise InvalidPayload("the payload's then is not a list")
    for one in value:
        if not isinstance(one, Mapping) or not isinstance(one.get("f"), str):
            raise InvalidPayload('the payload\'s then has what is no call: {"f": "name", "k": {"argument": 1}}')
        for name, part in one.items():
            if name not in _KINDS or not isinstance(part, _KINDS[name]):
                raise InvalidPayload(f"the payload's then has a call whose {name} cannot be {part!r}")
        if not 0 <= one.get("p", 0) <= 9:
            raise InvalidPayload(f"the payload's then has a call whose p is not from 0 to 9: {one['p']!r}")
    return tuple(value)
