"""The wire format of results in Redis: arq's, as JSON, or as a pickle if the payload was one.

A result is the payload's object (see payload.py) plus `s` success, `r` result or error, `st` and `ft` start and finish
in ms since 1970, `q` queue and `id` of the run, and `cancelled` and `too_large` if they apply.
"""

from __future__ import annotations

import asyncio
import json
import pickle
from typing import Any, NamedTuple

from pydantic_core import to_json

from worker.errors import InvalidPayload
from worker.queue.decoding import read_json
from worker.queue.payload import Payload, now_ms


class Result(NamedTuple):
    """The end of a run.

    Attributes:
        success: whether the job returned.
        value: the returned JSON value; the error in one line if it failed.
        cancelled: whether an operator cancelled the run.
        too_large: size in bytes of a result that was not stored; 0 if it was.
        kept: id of the run whose duplicate this run was, if it was dropped; see relay.lua.
    """

    success: bool
    value: Any
    cancelled: bool = False
    too_large: int = 0
    kept: str = ""


def result_values(
    payload: Payload | None, *, success: bool, run_id: str, queue: str, attempt: int, started_ms: int
) -> dict[str, Any]:
    """Return the object of arq's format for a run that ends now, without its result."""
    return {
        "t": attempt,
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
    attempt: int,
    started_ms: int,
    result_json: str | None = None,
) -> bytes:
    """Return a result in arq's format, in the codec of its payload.

    Args:
        payload: the job; None if it could not be read.
        result: the end of the run.
        run_id: id of the run.
        queue: name of its queue.
        attempt: number of the attempt.
        started_ms: begin of the attempt, in ms since 1970.
        result_json: `result.value` as JSON text, if the caller has it.
    """
    values = result_values(
        payload, success=result.success, run_id=run_id, queue=queue, attempt=attempt, started_ms=started_ms
    )
    if result.cancelled:
        values["cancelled"] = True
    if result.too_large:
        values["too_large"] = result.too_large
    if payload is not None and payload.pickled:
        return pickle.dumps(values | {"r": python_value(result, result_json)})
    text = to_json(values, fallback=str).decode()
    value = result_json if result_json is not None else json.dumps(result.value, ensure_ascii=False)
    return f'{text[:-1]},"r":{value}}}'.encode(errors="replace")  # an end that cannot be written would be lost


def python_value(result: Result, result_json: str | None) -> Any:
    """Return the Python value of a pickled result: arq's clients raise it if it is an error."""
    if result.cancelled:
        return asyncio.CancelledError(result.value)
    if not result.success:
        return RuntimeError(result.value)  # the base class of arq's JobExecutionFailed: arq is not imported
    return json.loads(result_json) if result_json is not None else result.value


def decode_result(raw: bytes) -> Result:
    """Read a result that Longhaul wrote.

    Raises:
        InvalidPayload: it is not such a result.
    """
    values = read_json(raw, "the result")
    match values:
        case {"s": bool(success)}:
            too_large, cancelled = values.get("too_large", 0), values.get("cancelled", False)
            kept = values.get("kept", "")
            if type(too_large) is int and type(cancelled) is bool and isinstance(kept, str):
                return Result(success, values.get("r"), cancelled, too_large, kept)
    raise InvalidPayload("the result in Redis is not a result of Longhaul: another worker wrote it")
