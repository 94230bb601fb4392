"""What lies in Redis: arq's payloads and results, as JSON.

arq's wire format is a mapping with short keys: `f` function, `a` positional and `k` named arguments, `t` number of
the try, `et` enqueue time in ms. Ours may add `v`, a mark of the signature that the client knew; `until`, the time in
ms after which it is not begun; `deadline`, that by which it has to have ended; `then` and `g`, what follows it
(`then.py`); `h`, headers: texts by name; `ledger`, `only`; and `pickle` where the result has to be one because the
client's payload was. A result adds `s` success, `r` result, `st` and `ft` start and finish in ms, `q` queue, `id`.
Stock clients pickle that mapping; here it is JSON. Of a payload only `f` is required.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from pydantic_core import from_json, to_json

from worker.errors import InvalidPayload
from worker.queue.chain import Member, check_then

_PICKLE = b"\x80"
_ENCODE_STRICTLY = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode
#: What every payload may have, and nearly all have nothing else.
_PLAIN = frozenset({"t", "f", "a", "k", "et", "v"})
_LAST_MS = 253_402_300_800_000  # the year 10,000


class Payload(NamedTuple):
    """A job as it lies in the queue."""

    function: str
    args: list[Any]
    kwargs: dict[str, Any]
    enqueued_ms: int
    pickled: bool = False  # so is its result to be
    in_ledger: bool = False  # a try of it has begun in the ledger, which has to be asked first
    tries: int | None = None  # number that its first try has at least: `_job_try` of arq's clients
    only: tuple[str, str] | None = None  # run and step whose quarantined rows alone are to be done
    until_ms: int = 0  # it is not begun after this time; 0 for any
    deadline_ms: int = 0  # it has to have ended by this time; 0 for any
    then: tuple[dict[str, Any], ...] = ()  # what follows it: see sequels.py
    group: Member | None = None
    headers: Mapping[str, str] = {}
    version: str = ""  # mark of the signature that its arguments were validated by; '' where the client knew none

    @property
    def arguments(self) -> str:
        """The arguments alone, as JSON that is the same for the same call."""
        call = [self.args, self.kwargs, *([] if self.only is None else [list(self.only)])]
        return json.dumps(call, sort_keys=True, ensure_ascii=False, default=str)

    def to_json(self) -> str:
        """Return it in arq's format.

        Raises:
            TypeError: an argument is no JSON value.
        """
        values: dict[str, Any] = {"t": self.tries, "f": self.function, "a": self.args, "k": self.kwargs}
        values["et"] = self.enqueued_ms
        if self.in_ledger:
            values["ledger"] = True
        if self.pickled:
            values["pickle"] = True
        if self.only is not None:
            values["only"] = list(self.only)
        if self.until_ms:
            values["until"] = self.until_ms
        if self.deadline_ms:
            values["deadline"] = self.deadline_ms
        if self.version:
            values["v"] = self.version
        if self.then:
            values["then"] = list(self.then)
        if self.group is not None:
            values["g"] = list(self.group)
        if self.headers:
            values["h"] = self.headers
        return _ENCODE_STRICTLY(values)


class Result(NamedTuple):
    """The end of a job as it lies in Redis.

    Attributes:
        success: whether it returned.
        value: what it returned, as JSON value; on failure the error in one line.
        cancelled: whether it was an order that ended it.
        too_large: bytes of a result that was not kept; 0 for one that was.
    """

    success: bool
    value: Any
    cancelled: bool = False
    too_large: int = 0


def now_ms() -> int:
    """Return the time in ms since 1970, as arq counts it."""
    return int(time.time() * 1000)


def seconds_of(time: float | timedelta | None) -> float:
    """Return a time that was given in seconds, or as a timedelta, in seconds; 0 for None."""
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
    """Return a new payload of a job.

    Args:
        job: its name.
        arguments: the text of a JSON object, by name.
        version: mark of the job's signature.
        until_ms: time after which it is not begun any more; 0 for any.
        deadline_ms: time by which it has to have ended; 0 for any.
        then: what follows it.
        group: its place in a group.
        headers: texts that travel with the run.
    """
    now = now_ms()
    more = f',"until":{until_ms}' if until_ms else ""
    if deadline_ms:
        more += f',"deadline":{deadline_ms}'
    if then:
        more += f',"then":{_ENCODE_STRICTLY(list(then))}'
    if group is not None:
        more += f',"g":{_ENCODE_STRICTLY(list(group))}'
    if headers:
        more += f',"h":{_ENCODE_STRICTLY(headers)}'
    return f'{{"t":null,"f":{json.dumps(job)},"a":[],"k":{arguments},"et":{now},"v":"{version}"{more}}}'


def without_expiry(raw: str) -> str:
    """Return a payload that may begin, and end, at any time; what is no payload of ours comes back as it is."""
    try:
        values = json.loads(raw)
    except ValueError:
        return raw
    if not isinstance(values, dict) or not {"until", "deadline"} & values.keys():
        return raw
    return json.dumps({name: value for name, value in values.items() if name not in ("until", "deadline")})


def _loads(raw: bytes) -> Any:
    """Read JSON: in Rust, unless it is of the kind that only Python's own reader takes, e.g. half a surrogate pair."""
    try:
        return from_json(raw)
    except ValueError:
        return json.loads(raw)


def decode_payload(raw: bytes, *, accept_pickle: bool) -> Payload:
    """Read a payload.

    Raises:
        InvalidPayload: it is none, or a pickle that the settings do not admit.
    """
    pickled = raw[:1] == _PICKLE
    if pickled and not accept_pickle:
        raise InvalidPayload(
            "the payload is a pickle of a stock arq client: give that client job_serializer=json.dumps (encoded), "
            "or set worker.accept_pickle = true where everybody who reaches Redis may run any code here"
        )
    try:
        values = pickle.loads(raw) if pickled else _loads(raw)  # noqa: S301
    except Exception as error:  # noqa: BLE001 - pickles fail with anything
        raise InvalidPayload(f"the payload is not JSON: {error}") from None
    return payload_of(values, pickled=pickled)


def payload_of(values: Any, *, pickled: bool) -> Payload:
    """Return the payload that has been read.

    Args:
        values: arq's mapping.
        pickled: whether its arguments, and so the job's result, are Python's own values.

    Raises:
        InvalidPayload: it is none.
    """
    if not isinstance(values, Mapping) or not isinstance(values.get("f"), str):
        raise InvalidPayload('the payload is not an object with the job\'s name: {"f": "name", "k": {"argument": 1}}')
    args, kwargs = values.get("a") or [], values.get("k") or {}
    enqueued = values.get("et") or 0
    if not isinstance(args, list | tuple) or not isinstance(kwargs, Mapping):
        raise InvalidPayload("the payload's a is not a list, or its k is not an object")
    if not all(isinstance(name, str) for name in kwargs):
        raise InvalidPayload("the payload's k has a name that is not a string")
    if not isinstance(enqueued, int) or not 0 <= enqueued < _LAST_MS:
        raise InvalidPayload(f"the payload's et is not a time in ms since 1970: {enqueued!r}")
    tries = values.get("t")
    if tries is not None and not isinstance(tries, int):
        raise InvalidPayload(f"the payload's t is not the number of a try: {tries!r}")
    version = str(values.get("v") or "")
    payload = Payload(values["f"], list(args), dict(kwargs), enqueued, pickled, tries=tries, version=version)
    return payload if values.keys() <= _PLAIN else _with_extras(payload, values)


def _with_extras(payload: Payload, values: Mapping[str, Any]) -> Payload:
    """Return a payload with what few have, checked."""
    only = values.get("only")
    if only is not None and not (isinstance(only, list) and len(only) == 2 and all(isinstance(v, str) for v in only)):
        raise InvalidPayload(f"the payload's only is not a run and a step: {only!r}")
    for name in ("until", "deadline"):
        if not isinstance(values.get(name) or 0, int):
            raise InvalidPayload(f"the payload's {name} is not a time in ms since 1970: {values[name]!r}")
    headers = values.get("h") or {}
    if not isinstance(headers, Mapping) or not all(isinstance(v, str) for pair in headers.items() for v in pair):
        raise InvalidPayload(f"the payload's h is not an object of texts: {headers!r}")
    return payload._replace(
        pickled=payload.pickled or values.get("pickle") is True,
        in_ledger=bool(values.get("ledger")),
        only=tuple(only) if only else None,
        until_ms=values.get("until") or 0,
        deadline_ms=values.get("deadline") or 0,
        then=check_then(values["then"]) if values.get("then") else (),
        group=Member.read(values.get("g")),
        headers=headers,
    )


def result_values(
    payload: Payload | None, *, success: bool, run_id: str, queue: str, tries: int, started_ms: int
) -> dict[str, Any]:
    """Return what arq's format says of a job that ends now, but for its result; see `encode_result`."""
    return {
        "t": tries,
        "f": payload.function if payload else "",
        "a": payload.args if payload else [],
        "k": payload.kwargs if payload else {},
        "et": payload.enqueued_ms if payload else 0,
        "s": success,
        "st": started_ms,
        "ft": now_ms(),
        "q": queue,
        "id": run_id,
    }


def encode_result(
    payload: Payload | None,
    result: Result,
    *,
    run_id: str,
    queue: str,
    tries: int,
    started_ms: int,
    result_json: str | None = None,
) -> bytes:
    """Return a result in arq's format, in the codec that the payload came in.

    Args:
        payload: the job; None where it could not be read.
        result: the end.
        run_id: id of the run.
        queue: name of the queue.
        tries: number of the claim.
        started_ms: begin of this try.
        result_json: `result.value` as JSON text already, to spare a second encoding.
    """
    values = result_values(
        payload, success=result.success, run_id=run_id, queue=queue, tries=tries, started_ms=started_ms
    )
    if result.cancelled:
        values["cancelled"] = True
    if result.too_large:
        values["too_large"] = result.too_large
    if payload is not None and payload.pickled:
        return pickle.dumps(values | {"r": python_value(result, result_json)})
    text = to_json(values, fallback=str).decode()
    value = result_json if result_json is not None else json.dumps(result.value, ensure_ascii=False)
    return f'{text[:-1]},"r":{value}}}'.encode()


def python_value(result: Result, result_json: str | None) -> Any:
    """Return what stands for an end in a result that is no JSON: arq's clients raise it where it is an error."""
    from arq.worker import JobExecutionFailed

    if result.cancelled:
        return asyncio.CancelledError(result.value)
    if not result.success:
        return JobExecutionFailed(result.value)
    return json.loads(result_json) if result_json is not None else result.value


def decode_result(raw: bytes) -> Result:
    """Read a result of ours.

    Raises:
        InvalidPayload: it is none.
    """
    try:
        values = json.loads(raw)
        return Result(values["s"], values.get("r"), values.get("cancelled", False), values.get("too_large", 0))
    except (ValueError, TypeError, KeyError):
        raise InvalidPayload("the result in Redis is not JSON of Longhaul: another worker wrote it") from None
