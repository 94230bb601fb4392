"""The trace that a run belongs to, as the W3C's Trace Context has it: `traceparent` and `tracestate`.

They are context variables that travel (`carried.py`). Where the process uses OpenTelemetry, its active span is what a
run is enqueued under, and in the job that span is the parent of those that the job begins. A process that does not use
it does not get it imported.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from worker.job.propagation import arrive, leaving, propagate

#: The trace and the span that this context belongs to: `00-<trace>-<span>-<flags>`; empty where there is none.
traceparent: ContextVar[str] = propagate(ContextVar("traceparent", default=""))
#: What vendors add to it.
tracestate: ContextVar[str] = propagate(ContextVar("tracestate", default=""))

# https://www.w3.org/TR/trace-context/#traceparent-header: neither version ff, nor ids of zeros.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


def headers_here() -> dict[str, str]:
    """Return the headers of a run that is enqueued in this context."""
    headers = leaving()
    api: Any = sys.modules.get("opentelemetry.trace")
    if api is not None:
        span = api.get_current_span().get_span_context()
        if span.is_valid:
            headers["traceparent"] = f"00-{span.trace_id:032x}-{span.span_id:016x}-{int(span.trace_flags):02x}"
            headers.pop("tracestate", None)
            if span.trace_state:
                headers["tracestate"] = span.trace_state.to_header()
    return headers


def enter(headers: Mapping[str, str]) -> None:
    """Put the headers of a run into the current context, that of its job: variables, and OpenTelemetry's span.

    A `traceparent` that is none is left out, as the standard wants it.
    """
    parent = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    if parent is None:
        headers = {name: value for name, value in headers.items() if name not in ("traceparent", "tracestate")}
    arrive(headers)
    api: Any = sys.modules.get("opentelemetry.trace")
    if parent is None or api is None:
        return
    import opentelemetry.context as context

    state = api.TraceState.from_header([headers["tracestate"]]) if "tracestate" in headers else None
    remote = api.SpanContext(
        trace_id=int(parent[1], 16),
        span_id=int(parent[2], 16),
        is_remote=True,
        trace_flags=api.TraceFlags(int(parent[3], 16)),
        trace_state=state,
    )
    context.attach(api.set_span_in_context(api.NonRecordingSpan(remote)))  # the context ends with the job's task
