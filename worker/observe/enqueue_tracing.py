"""A span of OpenTelemetry for each run that is enqueued: the parent of the spans of its attempts.

Clients load this module if `tracing.enabled` is set. It needs the API of OpenTelemetry alone.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from worker.errors import format_error
from worker.job.middleware import EnqueueCall, Middleware
from worker.job.propagation import current_headers

SYSTEM = "longhaul"

logger = logging.getLogger("longhaul.tracing")


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
        span = start_span(self._tracer, f"enqueue {call.job}", kind=SpanKind.PRODUCER, attributes=attributes)
        try:
            with trace.use_span(span, record_exception=False, set_status_on_exception=False):
                call.headers.update(current_headers())
                run = await proceed()
            span.set_attribute("messaging.message.id", run.id)
            span.set_attribute("longhaul.is_new", run.is_new)
            return run
        except Exception as error:
            record_error(span, error)
            span.set_status(Status(StatusCode.ERROR, format_error(error)))
            raise
        finally:
            with contextlib.suppress(Exception):
                span.end()


def start_span(tracer: trace.Tracer, name: str, **options: Any) -> trace.Span:
    """Return a new span. If a processor of the application raises, return one that records nothing."""
    try:
        return tracer.start_span(name, **options)
    except Exception as error:  # noqa: BLE001 - a span is no reason to lose a run
        logger.debug("span not started name=%s error=%s", name, format_error(error))
        return trace.INVALID_SPAN


def record_error(span: trace.Span, error: BaseException) -> None:
    """Record an error, unless that raises: the SDK asks the error for its text."""
    with contextlib.suppress(Exception):
        span.record_exception(error)
