"""The wire format of jobs in Redis: arq's payloads, as JSON.

A payload is an object with short keys. Only `f` is required.

| key | value |
| --- | --- |
| `f` | name of the job |
| `a`, `k` | positional arguments (array) and arguments by name (object) |
| `t` | number of the first attempt; null for 1 |
| `et` | time at which the client enqueued the run, in ms since 1970 |
| `v` | fingerprint of the signature that the client validated the arguments with |
| `until` | time in ms since 1970 after which the run must not begin |
| `deadline` | time in ms since 1970 by which the run must have ended |
| `then` | the calls that follow the run: see below |
| `g` | the run's place in a group: id, place from 1, and whether the callback needs its result |
| `h` | headers: texts by name |
| `ledger` | true after an attempt has begun in the ledger |
| `hand` | of a helper run: the run whose walk it takes part in, its step, number of the hand, fence of that run |
| `only` | run id and step whose quarantined rows are retried |
| `pickle` | true if the result must be a pickle because the client's payload was one |

Stock arq clients pickle that object. Longhaul reads pickles only if the settings allow it.

`then` is an array of calls, in order. A call is an object with `f` and `k`, and optionally `id` of its run, `q` queue,
`d` delay in ms, `p` priority, `x` ms after which it has expired, `v` signature fingerprint, and `r`, the name of the
argument that receives the preceding result. The last run of a chain carries the group of the first.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from worker.errors import InvalidPayload
from worker.queue.decoding import MAX_BYTES, is_other_key, read_json
from worker.queue.plain_pickle import read_pickle

_PICKLE = b"\x80"
encode_strictly = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
#: Keys that any payload may have. Nearly all payloads have no others.
_PLAIN = frozenset({"t", "f", "a", "k", "et", "v"})
#: The year 10,000, in ms since 1970.
LAST_MS = 253_402_300_800_000
LONGEST_MS = 100 * 366 * 86_400_000  # a hundred years
_LONGEST_NAME = 500
#: Longest id of a run, in characters.
LONGEST_ID = 500
_MOST_ATTEMPTS = 1_000_000
_MOST_MEMBERS = 1_000_000_000
_MOST_HANDS = 1_000

_CALL_TYPES: dict[str, Any] = {
    "id": str,
    "f": str,
    "k": dict,
    "v": str,
    "q": str,
    "d": int,
    "p": int,
    "fair": str,
    "x": int,
    "r": str,
}
_CALL_BOUNDS = {"d": LONGEST_MS, "x": LONGEST_MS, "p": 9}


class Member(NamedTuple):
    """A run's place in a group.

    Attributes:
        group: id of the group.
        place: place of the run, from 1.
        needs_result: whether the callback receives the run's result.
    """

    group: str
    place: int
    needs_result: bool

    @classmethod
    def from_wire(cls, value: Any) -> Member | None:
        """Return the member that the `g` of a payload describes; None if it has none.

        Raises:
            InvalidPayload: the value is not a group, a place, and a truth value.
        """
        if value is None:
            return None
        match value:
            case [str(group), int(place), bool() | 0 | 1 as needs_result] if (
                group and is_unicode(group) and type(place) is int and 1 <= place <= _MOST_MEMBERS
            ):
                return cls(group, place, bool(needs_result))
        raise InvalidPayload(
            f"the payload's g is not [group, place from 1, whether its result is needed]: {_shown(value)}"
        )


class HandMark(NamedTuple):
    """The walk that a helper run takes part in.

    Attributes:
        run_id: id of the run whose walk it is.
        step: name of the step.
        number: number of the hand, from 2.
        fence: fence of the attempt of that run that has enqueued the helper.
    """

    run_id: str
    step: str
    number: int
    fence: int

    @property
    def id(self) -> str:
        """The id of the helper run. A run that enters its walk again enqueues helpers with other ids."""
        return derived_id(f"hand-{self.number}", f"{self.run_id}:{self.step}:hand-{self.number}:{self.fence}")

    @classmethod
    def from_wire(cls, value: Any) -> HandMark | None:
        """Return the hand that the `hand` of a payload describes; None if it has none.

        Raises:
            InvalidPayload: the value is not a run, a step and two numbers.
        """
        match value:
            case None:
                return None
            case [str(run_id), str(step), int(number), int(fence)] if (
                read_run_id(run_id)
                and is_unicode(step)
                and 2 <= number <= _MOST_HANDS
                and type(fence) is int
                and 1 <= fence < 2**63
            ):
                return cls(run_id, step, number, fence)
        raise InvalidPayload(f"the payload's hand is not [run, step, number from 2, fence]: {_shown(value)}")


class Payload(NamedTuple):
    """A job in the queue."""

    function: str
    args: list[Any]
    kwargs: dict[str, Any]
    enqueued_ms: int
    pickled: bool = False  # the result must be a pickle, too
    in_ledger: bool = False  # an attempt has begun in the ledger, which must be asked first
    attempt: int | None = None  # lowest number of its first attempt: `_job_try` of arq's clients
    quarantine_retry: tuple[str, str] | None = None  # run and step whose quarantined rows are retried
    until_ms: int = 0  # the run must not begin after this time; 0 for no limit
    deadline_ms: int = 0  # the run must have ended by this time; 0 for no limit
    next_calls: tuple[dict[str, Any], ...] = ()  # the calls that follow: see chain.py
    group: Member | None = None
    headers: Mapping[str, str] = {}
    version: str = ""  # fingerprint of the signature that validated the arguments; '' if the client knew none
    hand: HandMark | None = None  # the walk that a helper run takes part in

    @property
    def arguments(self) -> str:
        """The arguments alone, as JSON that is the same for the same call."""
        call = [self.args, self.kwargs, *([] if self.quarantine_retry is None else [list(self.quarantine_retry)])]
        return json.dumps(call, sort_keys=True, ensure_ascii=False, default=str)

    def to_json(self) -> str:
        """Return the payload in arq's format.

        Raises:
            TypeError: an argument is not a JSON value.
        """
        values: dict[str, Any] = {"t": self.attempt, "f": self.function, "a": self.args, "k": self.kwargs}
        values["et"] = self.enqueued_ms
        if self.in_ledger:
            values["ledger"] = True
        if self.pickled:
            values["pickle"] = True
        if self.quarantine_retry is not None:
            values["only"] = list(self.quarantine_retry)
        if self.until_ms:
            values["until"] = self.until_ms
        if self.deadline_ms:
            values["deadline"] = self.deadline_ms
        if self.version:
            values["v"] = self.version
        if self.next_calls:
            values["then"] = list(self.next_calls)
        if self.group is not None:
            values["g"] = list(self.group)
        if self.headers:
            values["h"] = dict(self.headers)
        if self.hand is not None:
            values["hand"] = list(self.hand)
        return encode_strictly(values)


def now_ms() -> int:
    """Return the current time in ms since 1970, the unit of arq's format."""
    return int(time.time() * 1000)


def read_run_id(raw: bytes | str) -> str | None:
    """Return the id of a run; None for an invalid id: ids appear in logs, in the ledger and on terminals."""
    try:
        text = raw if isinstance(raw, str) else raw.decode()
    except UnicodeDecodeError:
        return None
    shown = text if text.isascii() else text.replace("\u200d", "")
    return text if 0 < len(text) <= LONGEST_ID and shown.isprintable() and is_unicode(text) else None


def derived_id(kind: str, text: str) -> str:
    """Return an id that was made from that of another run; if it is too long for an id, its SHA-256 after `kind`."""
    return text if len(text) <= LONGEST_ID else f"{kind}:{hashlib.sha256(text.encode()).hexdigest()}"


def to_seconds(time: float | timedelta | None) -> float:
    """Return a duration in seconds; 0 for None."""
    return time.total_seconds() if isinstance(time, timedelta) else time or 0.0


def payload_text(
    job: str,
    arguments: str,
    *,
    version: str,
    until_ms: int = 0,
    deadline_ms: int = 0,
    then: Sequence[Mapping[str, Any]] = (),
    group: Member | None = None,
    headers: Mapping[str, str] | None = None,
) -> str:
    """Return the text of a new payload.

    Args:
        job: name of the job.
        arguments: its arguments by name, the text of a JSON object.
        version: fingerprint of the job's signature.
        until_ms: time after which the run must not begin; 0 for no limit.
        deadline_ms: time by which the run must have ended; 0 for no limit.
        then: the calls that follow.
        group: its place in a group.
        headers: texts by name that are stored with the run.
    """
    now = now_ms()
    more = f',"until":{until_ms}' if until_ms else ""
    if deadline_ms:
        more += f',"deadline":{deadline_ms}'
    if then:
        more += f',"then":{encode_strictly(list(then))}'
    if group is not None:
        more += f',"g":{encode_strictly(list(group))}'
    if headers:
        more += f',"h":{encode_strictly(dict(headers))}'
    return f'{{"t":null,"f":{json.dumps(job)},"a":[],"k":{arguments},"et":{now},"v":"{version}"{more}}}'


def without_expiry(raw: str) -> str:
    """Return a payload without `until` and `deadline`, for a run that an operator retries. Keep all other keys."""
    try:
        values = read_json(raw, "the payload")
    except InvalidPayload:
        return raw
    if not isinstance(values, dict) or not {"until", "deadline"} & values.keys():
        return raw
    return json.dumps({name: value for name, value in values.items() if name not in ("until", "deadline")})


def decode_payload(raw: bytes, *, accept_pickle: bool, max_bytes: int = MAX_BYTES) -> Payload:
    """Read a payload.

    Args:
        raw: the value of `arq:job:<id>`.
        accept_pickle: whether a pickle is read; `worker.accept_pickle`.
        max_bytes: longest payload that is read; `worker.max_payload_bytes`.

    Raises:
        InvalidPayload: it is not a payload, exceeds a limit, or is a pickle that the settings do not allow.
    """
    if raw[:1] != _PICKLE:
        return payload_from_values(read_json(raw, "the payload", max_bytes=max_bytes), pickled=False)
    if not accept_pickle:
        raise InvalidPayload(
            "the payload is a pickle of a stock arq client: give that client job_serializer=json.dumps (encoded), "
            "or set worker.accept_pickle = true: pickles of plain types are read then"
        )
    return payload_from_values(read_pickle(raw, "the payload", max_bytes=max_bytes), pickled=True)


def payload_from_values(values: Any, *, pickled: bool) -> Payload:
    """Return the payload that an object of arq's format describes.

    Args:
        values: the object.
        pickled: whether its arguments, and so the job's result, are Python's own values.

    Raises:
        InvalidPayload: a key is missing, or has a value of a wrong type or out of its bounds.
    """
    if not isinstance(values, dict) or not isinstance(values.get("f"), str):
        raise InvalidPayload('the payload is not an object with the job\'s name: {"f": "name", "k": {"argument": 1}}')
    function = values["f"]
    if not 0 < len(function) <= _LONGEST_NAME or "\x00" in function or not is_unicode(function):
        raise InvalidPayload(f"the payload's f is not the name of a job: {_shown(function)}")
    args, kwargs = values.get("a") or [], values.get("k") or {}
    if not isinstance(args, (list, tuple)) or not isinstance(kwargs, dict):
        raise InvalidPayload("the payload's a is not a list, or its k is not an object")
    if kwargs and not all(isinstance(name, str) for name in kwargs):
        raise InvalidPayload("the payload's k has a name that is not a string")
    enqueued = _bounded(values, "et", LAST_MS, "a time in ms since 1970") or 0
    attempt = _bounded(values, "t", _MOST_ATTEMPTS, f"the number of an attempt, up to {_MOST_ATTEMPTS:,}")
    version = values.get("v") or ""
    if not isinstance(version, str) or len(version) > _LONGEST_NAME:
        raise InvalidPayload(f"the payload's v is not the fingerprint of a signature: {_shown(version)}")
    payload = Payload(function, [*args], kwargs, enqueued, pickled, attempt=attempt, version=version)
    return payload if values.keys() <= _PLAIN else _with_extras(payload, values)


def _with_extras(payload: Payload, values: Mapping[str, Any]) -> Payload:
    """Return a payload with the rarely used keys."""
    only = values.get("only")
    if only is not None and not (isinstance(only, list) and len(only) == 2 and all(isinstance(v, str) for v in only)):
        raise InvalidPayload(f"the payload's only is not a run and a step: {_shown(only)}")
    headers = values.get("h") or {}
    if not isinstance(headers, Mapping) or not all(
        isinstance(text, str) and is_unicode(text) for pair in headers.items() for text in pair
    ):
        raise InvalidPayload(f"the payload's h is not an object of texts: {_shown(headers)}")
    return payload._replace(
        pickled=payload.pickled or values.get("pickle") is True,
        in_ledger=bool(values.get("ledger")),
        quarantine_retry=(only[0], only[1]) if only else None,
        until_ms=_bounded(values, "until", LAST_MS, "a time in ms since 1970") or 0,
        deadline_ms=_bounded(values, "deadline", LAST_MS, "a time in ms since 1970") or 0,
        next_calls=_next_calls(values["then"]) if values.get("then") else (),
        group=Member.from_wire(values.get("g")),
        headers=headers,
        hand=HandMark.from_wire(values.get("hand")),
    )


def _bounded(values: Mapping[str, Any], name: str, most: int, meaning: str) -> int | None:
    """Return a whole number from 0 to `most`, or None if the payload has none."""
    value = values.get(name)
    if value is None or (type(value) is int and 0 <= value <= most):
        return value
    raise InvalidPayload(f"the payload's {name} is not {meaning}: {_shown(value)}")


def _next_calls(value: Any) -> tuple[dict[str, Any], ...]:
    """Return the calls that follow a run.

    Raises:
        InvalidPayload: the value is not an array of calls.
    """
    if not isinstance(value, list):
        raise InvalidPayload("the payload's then is not a list")
    for call in value:
        if not isinstance(call, dict) or not isinstance(call.get("f"), str):
            raise InvalidPayload('the payload\'s then has an entry that is no call: {"f": "name", "k": {"size": 1}}')
        for name, part in call.items():
            if not _is_call_part(name, part):
                raise InvalidPayload(f"the payload's then has a call whose {name[:50]} cannot be {_shown(part)}")
    return tuple(value)


def _is_call_part(name: str, value: Any) -> bool:
    if name not in _CALL_TYPES or not isinstance(value, _CALL_TYPES[name]) or isinstance(value, bool):
        return False
    if name in _CALL_BOUNDS:
        return bool(0 <= value <= _CALL_BOUNDS[name])
    if name == "q":
        return read_run_id(value) is not None and not is_other_key(value)
    return name not in ("id", "f") or (value != "" and is_unicode(value))


def is_unicode(text: str) -> bool:
    """Return whether a text can be written as UTF-8: pickles can hold halves of surrogate pairs."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: object) -> str:
    """Return the beginning of a value's repr for an error message."""
    if isinstance(value, str | bytes):
        value = value[:100]
    elif isinstance(value, int) and value.bit_length() > 64:
        return "a number of more than 64 bits"
    elif isinstance(value, Mapping | list | tuple):
        return f"a value of type {type(value).__name__} with {len(value)} entries"
    return repr(value)[:100]
