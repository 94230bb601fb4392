"""Builds the follow-up of a run: the next run of a chain, or the callback of a group whose members have all finished.

The script that removes the finished run from its queue also enqueues the next one (ack_and_claim.lua,
enqueue_next.lua). Both happen atomically, so a process that dies cannot separate them.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from worker.job.call import Call, with_argument
from worker.job.propagation import current_headers, with_followed_span
from worker.queue.outbox import check_queue_name
from worker.queue.payload import Member, Payload, derived_id, now_ms, payload_text, to_seconds


def make_next_calls(calls: Iterable[Call[Any]]) -> list[dict[str, Any]]:
    """Return calls in the form of a payload's `then`, each with the id of its future run."""
    return [_to_wire(call) for first in calls for call in first.chain]


def _to_wire(call: Call[Any]) -> dict[str, Any]:
    options, job = call.job.enqueue_options, call.job
    if options.queue:
        check_queue_name(options.queue)
    values = {
        "id": uuid.uuid4().hex,
        "f": job.name,
        "k": json.loads(call.arguments),
        "v": job.version,
        "q": options.queue,
        "d": to_ms(options.delay),
        "p": job.priority,
        "fair": make_fair_entry(call),
        "x": to_ms(options.expires),
        "r": call.result_as,
    }
    return {name: value for name, value in values.items() if value or name == "k"}


def make_fair_entry(call: Call[Any]) -> str:
    """Return the weight and the flow of a call (fair.lua); empty if its job is not fair, or waits for that argument."""
    fair = call.job.fair
    return "" if fair is None or call.result_as == fair.by else call.job.fair_entry(json.loads(call.arguments))


def make_follow_up(
    payload: Payload, *, run_id: str, queue: str, success: bool, result: str, span: str = ""
) -> dict[str, Any] | None:
    """Return the follow-up that enqueue_next.lua processes at the end of a run; None if there is none.

    Args:
        payload: payload of the run.
        run_id: id of the run.
        queue: queue of the run. The next run goes to the same queue unless its call names another.
        success: whether the job returned.
        result: the returned value as JSON text.
        span: the span of the run, as a `traceparent`; empty without tracing.
    """
    if payload.next_calls and success:
        first, *rest = payload.next_calls
        payload = payload._replace(headers=with_followed_span(payload.headers, span))
        return {"put": _next_run(first, rest, payload, run_id=run_id, queue=queue, result=result)}
    group = payload.group
    if group is None:
        return None
    wanted = result if success else "null"
    return {"group": [group.group, str(group.place), wanted if group.needs_result else "", success, span]}


def _next_run(
    call: Mapping[str, Any],
    rest: Sequence[Mapping[str, Any]],
    preceding: Payload,
    *,
    run_id: str,
    queue: str,
    result: str,
) -> dict[str, Any]:
    arguments = json.dumps(call.get("k") or {}, ensure_ascii=False)
    if call.get("r"):
        arguments = with_argument(arguments, call["r"], result)
    text = _payload_of_call(call, arguments, then=rest, group=preceding.group, headers=preceding.headers)
    return {
        "id": call.get("id") or derived_id("then", f"{run_id}:then"),
        "queue": call.get("q") or queue,
        "payload": text,
        "delay": call.get("d", 0),
        "priority": call.get("p", 0),
        "fair": call.get("fair", ""),
    }


def _payload_of_call(
    call: Mapping[str, Any],
    arguments: str,
    *,
    then: Sequence[Mapping[str, Any]],
    group: Member | None = None,
    headers: Mapping[str, str],
) -> str:
    """Return the payload of a new run of a call.

    Args:
        call: the call, in the form of a payload's `then`.
        arguments: its arguments, as the text of a JSON object.
        then: the calls that follow it.
        group: its place in a group.
        headers: the headers of the preceding run, which are passed on.
    """
    until = now_ms() + call["x"] if call.get("x") else 0
    return payload_text(
        call["f"], arguments, version=call.get("v", ""), until_ms=until, then=then, group=group, headers=headers
    )


def make_callback(call: Call[Any], *, group_id: str, queue: str) -> dict[str, str]:
    """Return the callback of a group in the form of its hash. The payload is split where the results are inserted.

    Args:
        call: the callback, with the calls that follow it.
        group_id: id of the group.
        queue: queue of a call that names no other.
    """
    first, *rest = make_next_calls([call])
    arguments = json.dumps(first["k"], ensure_ascii=False)
    mark = json.dumps(f"results of {uuid.uuid4().hex}")
    if call.result_as:
        arguments = with_argument(arguments, call.result_as, mark)
    before, _, after = _payload_of_call(first, arguments, then=rest, headers=current_headers()).partition(mark)
    return {
        "id": f"{group_id}:then",
        "job": first["f"],
        "queue": first.get("q") or queue,
        "delay": str(first.get("d", 0)),
        "priority": str(first.get("p", 0)),
        "fair": first.get("fair", ""),
        "payload": before,
        "payload_after_results": after,
    }


def to_ms(time: float | timedelta | datetime | None) -> int:
    """Return a duration in ms; 0 for None. A call cannot have an absolute time: `Job.call` rejects it."""
    if isinstance(time, datetime):
        raise TypeError(f"a call cannot have the absolute time {time}")
    return round(to_seconds(time) * 1000)
