"""Context that travels with a run: context variables, and the trace that the run belongs to.

They are headers of the payload, texts by name. They stay with the run through retries, takeovers and dead letters, and
are set in its job, also in a thread or a process.

The trace is that of the W3C's Trace Context: `traceparent` and `tracestate`. If the process uses OpenTelemetry, its
active span is the parent of a run that is enqueued, and in the job that span is the parent of the job's own spans.
OpenTelemetry is not imported for it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from worker.errors import RegistrationError


@dataclass
class AttemptFields:
    """The attempt that runs in a context, for the log.

    Attributes:
        run: id of the run.
        job: name of the job.
        attempt: number of the attempt.
        step: name of the current loop, or of the one that has failed; None outside of loops.
        helps: of a helper run, the id of the run whose walk it takes part in.
        trace_id: id of the trace that the run belongs to, in hexadecimal; None for none.
        span: the span of the attempt, as a `traceparent`; empty without tracing. It is no field of the log.
    """

    run: str
    job: str
    attempt: int
    step: str | None = None
    helps: str | None = None
    trace_id: str | None = None
    span: str = ""

    def as_extra(self) -> dict[str, Any]:
        """Return the fields of a log record."""
        return {name: value for name, value in vars(self).items() if value is not None and name != "span"}


#: The name of the job that runs in this context; empty outside of a job.
current_job: ContextVar[str] = ContextVar("current_job", default="")
#: The attempt that runs in this context; None outside of a job.
current_attempt: ContextVar[AttemptFields | None] = ContextVar("current_attempt", default=None)

#: The attribute of a log record that names its attempt where the context is another one: a record of `ctx.log` in a
#: thread that the job has started, or of a subprocess.
RECORD_ATTEMPT = "longhaul_attempt"

#: The command that only looks at a job, and therefore refuses its commands to the queue; empty for a real run.
looking_command: ContextVar[str] = ContextVar("looking_command", default="")

#: The header with the span of the former attempt of a run, as a `traceparent`.
FORMER_SPAN = "longhaul-former-span"
#: The header with the span of the run that a run of a chain follows.
FOLLOWED_SPAN = "longhaul-followed-span"

#: The header of a run whose walks an operator has restricted; the restriction itself is in the ledger.
SELECTED = "longhaul-selection"
#: Marks a run that retries some quarantined rows: their ids, with commas.
QUARANTINED_ROWS = "longhaul-quarantined-rows"

_propagated: dict[str, ContextVar[str]] = {}
# https://www.w3.org/TR/trace-context/#traceparent-header: neither version ff nor ids of zeros.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")


def propagate(variable: ContextVar[str]) -> ContextVar[str]:
    """Make a context variable travel with each run: `tenant = propagate(ContextVar("tenant", default=""))`.

    An empty variable does not travel. Call this once, in a module that both client and worker import.

    Args:
        variable: its name is that of the header.

    Returns:
        The variable.

    Raises:
        RegistrationError: Another variable has the same name.
    """
    if _propagated.setdefault(variable.name, variable) is not variable:
        raise RegistrationError(f"propagate: another context variable is named {variable.name!r}: rename one")
    return variable


#: The trace and the span of this context: `00-<trace>-<span>-<flags>`; empty for none.
traceparent: ContextVar[str] = propagate(ContextVar("traceparent", default=""))
#: Data that vendors add to `traceparent`.
tracestate: ContextVar[str] = propagate(ContextVar("tracestate", default=""))


def current_headers() -> dict[str, str]:
    """Return the headers of a run that is enqueued in this context."""
    headers = {name: value for name, variable in _propagated.items() if (value := variable.get(""))}
    api: Any = sys.modules.get("opentelemetry.trace")
    if api is not None:
        span = api.get_current_span().get_span_context()
        if span.is_valid:
            headers["traceparent"] = f"00-{span.trace_id:032x}-{span.span_id:016x}-{int(span.trace_flags):02x}"
            headers.pop("tracestate", None)
            if span.trace_state:
                headers["tracestate"] = span.trace_state.to_header()
    return headers


def parse_traceparent(text: str) -> tuple[str, str, str] | None:
    """Return trace id, span id and flags of a `traceparent`, in hexadecimal; None for any other text."""
    match = _TRACEPARENT.fullmatch(text)
    return None if match is None else (match[1], match[2], match[3])


def with_followed_span(headers: Mapping[str, str], span: str) -> dict[str, str]:
    """Return the headers of a run that follows another one.

    Args:
        headers: those of the preceding run.
        span: the span of its last attempt; empty for none.
    """
    kept = {name: value for name, value in headers.items() if name not in (FORMER_SPAN, FOLLOWED_SPAN)}
    return {**kept, FOLLOWED_SPAN: span} if span else kept


def current_trace() -> tuple[str, str] | None:
    """Return the ids of the trace and of the span of this context, in hexadecimal; None without a trace."""
    api: Any = sys.modules.get("opentelemetry.trace")
    if api is not None and (span := api.get_current_span().get_span_context()).is_valid:
        return f"{span.trace_id:032x}", f"{span.span_id:016x}"
    parent = _TRACEPARENT.fullmatch(traceparent.get())
    return None if parent is None else (parent[1], parent[2])


def current_trace_id() -> str | None:
    """Return the id of the trace of this context, in hexadecimal; None without a trace."""
    trace = current_trace()
    return None if trace is None else trace[0]


def apply_headers(headers: Mapping[str, str]) -> None:
    """Set the propagated variables, and the active span of OpenTelemetry, in the context of a job about to begin.

    An invalid `traceparent` is left out, as the standard demands.

    Args:
        headers: those of the run.
    """
    parent = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    if parent is None:
        headers = {name: value for name, value in headers.items() if name not in ("traceparent", "tracestate")}
    for name, value in headers.items():
        if name in _propagated:
            _propagated[name].set(value)
    if parent is not None and "opentelemetry.trace" in sys.modules:
        _attach_span(parent, headers.get("tracestate"))


def _attach_span(parent: re.Match[str], state: str | None) -> None:
    """Make the span of a `traceparent` the active one; the context ends with the task of the job."""
    import opentelemetry.context as context

    api: Any = sys.modules["opentelemetry.trace"]
    remote = api.SpanContext(
        trace_id=int(parent[1], 16),
        span_id=int(parent[2], 16),
        is_remote=True,
        trace_flags=api.TraceFlags(int(parent[3], 16)),
        trace_state=None if state is None else api.TraceState.from_header([state]),
    )
    context.attach(api.set_span_in_context(api.NonRecordingSpan(remote)))
