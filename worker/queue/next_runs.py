"""What follows a run: the next one of a chain, or the callback of a group whose members are all done.

Both are put into the queue by the very script that takes the run before out of it (ack_and_claim.lua,
enqueue_next.lua), so that there is no moment at which one is done and the other is not, whatever dies. How payloads
propagate it stands in `then.py`.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from worker.job.call import Call, with_argument
from worker.job.trace_context import headers_here
from worker.queue.chain import Member
from worker.queue.payload import Payload, now_ms, payload_text, seconds_of


def then_of(calls: Iterable[Call[Any]]) -> list[dict[str, Any]]:
    """Return calls as payloads propagate them, each with the id that its run will have."""
    return [_plain(call) for first in calls for call in first.chain]


def _plain(call: Call[Any]) -> dict[str, Any]:
    options, job = call.job.enqueue_options, call.job
    plain = {
        "id": uuid.uuid4().hex,
        "f": job.name,
        "k": json.loads(call.arguments),
        "v": job.version,
        "q": options.queue,
        "d": delay_ms(options.delay),
        "p": job.priority_now,
        "x": delay_ms(options.expires),
        "r": call.result_as,
    }
    return {name: value for name, value in plain.items() if value or name == "k"}


def sequel(payload: Payload, *, run_id: str, queue: str, success: bool, result: str) -> dict[str, Any] | None:
    """Return what follows the end of a run, as enqueue_next.lua takes it; None where nothing does.

    Args:
        payload: of the run.
        run_id: its id.
        queue: its queue, which is that of the next one, unless it says another.
        success: whether it returned.
        result: what it returned, as JSON text.
    """
    if payload.then and success:
        first, *rest = payload.then
        return {"put": _put(first, rest, payload, run_id=run_id, queue=queue, result=result)}
    group = payload.group
    if group is None:
        return None
    wanted = result if success else "null"
    return {"group": [group.group, str(group.place), wanted if group.wanted else "", success]}


def _put(
    call: Mapping[str, Any], rest: Sequence[Mapping[str, Any]], before: Payload, *, run_id: str, queue: str, result: str
) -> dict[str, Any]:
    arguments = json.dumps(call.get("k") or {}, ensure_ascii=False)
    if call.get("r"):
        arguments = with_argument(arguments, call["r"], result)
    text = _payload_of(call, arguments, then=rest, group=before.group, headers=before.headers)
    return {
        "id": call.get("id") or f"{run_id}:then",
        "queue": call.get("q") or queue,
        "payload": text,
        "delay": call.get("d", 0),
        "priority": call.get("p", 0),
    }


def _payload_of(
    call: Mapping[str, Any],
    arguments: str,
    *,
    then: Sequence[Mapping[str, Any]],
    group: Member | None = None,
    headers: Mapping[str, str],
) -> str:
    """Return the payload of a call's run, which begins now.

    Args:
        call: as payloads propagate it.
        arguments: its arguments, the text of a JSON object.
        then: what follows it.
        group: its place in a group.
        headers: texts that travel with the run: those of the one before.
    """
    until = now_ms() + call["x"] if call.get("x") else 0
    return payload_text(
        call["f"], arguments, version=call.get("v", ""), until_ms=until, then=then, group=group, headers=headers
    )


def callback_of(call: Call[Any], *, group_id: str, queue: str) -> dict[str, str]:
    """Return the callback of a group, as its hash holds it: the payload in two parts, the results come in between.

    Args:
        call: the callback, with what follows it.
        group_id: id of the group.
        queue: for a call that says no other.
    """
    first, *rest = then_of([call])
    arguments = json.dumps(first["k"], ensure_ascii=False)
    mark = json.dumps(f"results of {uuid.uuid4().hex}")
    if call.result_as:
        arguments = with_argument(arguments, call.result_as, mark)
    before, _, after = _payload_of(first, arguments, then=rest, headers=headers_here()).partition(mark)
    return {
        "id": f"{group_id}:then",
        "job": first["f"],
        "queue": first.get("q") or queue,
        "delay": str(first.get("d", 0)),
        "priority": str(first.get("p", 0)),
        "payload": before,
        "payload_after_results": after,
    }


def delay_ms(time: float | timedelta | datetime | None) -> int:
    """Return a time that was given in seconds, or as a timedelta, in ms; 0 for None. Calls have no absolute ones."""
    assert not isinstance(time, datetime)  # noqa: S101 - `call_of` refuses it
    return round(seconds_of(time) * 1000)
