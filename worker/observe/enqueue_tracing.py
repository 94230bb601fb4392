"""A span of OpenTelemetry for each run that is enqueued: the parent of the spans of its attempts.

Clients load this module if `tracing.enabled` is set. It needs the API of OpenTelemetry alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from worker.errors import format_error
from worker.job.middleware import EnqueueCall, Middleware
from worker.job.propagation import current_headers

SYSTEM = "longhaul"


class EnqueueTracing(Middleware):
    """Middleware that makes a span around each enqueueing, whose context travels with the run."""

    def __init__(self) -> None:
        self._tracer = trace.get_tracer("longhaul")

    async def enqueue(self, call: EnqueueCall, proceed: Callable[[], Awaitable[Any]]) -> Any:
        """Enqueue a run in a span."""
        attributes = {
            "messaging.system": SYSTEM,
            "messaging.operation.name": "enqueue",
            "messaging.operation.type": "send",
            "messaging.destination.name": call.queue,
            "longhaul.job": call.job,
        }
        kind = SpanKind.PRODUCER
        with self._tracer.start_as_current_span(
            f"enqueue {call.job}", kind=kind, attributes=attributes, set_status_on_exception=False
        ) as span:
            call.headers.update(current_headers())
            try:
                run = await proceed()
            except Exception as error:
                span.set_status(Status(StatusCode.ERROR, format_error(error)))
                raise
            span.set_attribute("messaging.message.id", run.id)
            span.set_attribute("longhaul.is_new", run.is_new)
            return run
