"""Spans of OpenTelemetry for the attempts of runs and for their batches.

The span of an attempt is a child of the span that has enqueued the run. It is linked to the former attempt of the run,
and to the run that it follows in a chain or group. Its batches are its children. It needs the API of OpenTelemetry
alone; without a provider of the application, its spans are not recorded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from contextvars import Token
from datetime import datetime
from typing import TYPE_CHECKING, Any

from opentelemetry import trace
from opentelemetry.context import Context, attach
from opentelemetry.trace import Link, NonRecordingSpan, Span, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from redis.exceptions import RedisError

from worker.batch import Progress
from worker.errors import AttemptExit, JobInterrupted, Snooze
from worker.job.middleware import Middleware
from worker.job.propagation import (
    FOLLOWED_SPAN,
    FORMER_SPAN,
    AttemptFields,
    current_attempt,
    current_headers,
    parse_traceparent,
)
from worker.observe.enqueue_tracing import SYSTEM, record_error, start_span
from worker.queue import keys
from worker.runtime.observer import Observer, RunInfo
from worker.settings import Settings

if TYPE_CHECKING:
    from worker.attempt.context import JobContext

_MOST_FOLLOWED = 32
_GROUP_SUFFIX = ":then"
_SECOND_NS = 1_000_000_000
#: An attempt that is left to its lease, after an outage, never reports its end.
_MOST_RUNNING = 10_000
_SECONDS_TO_FLUSH = 4.0


class _Traced:
    """An attempt whose span is open.

    Attributes:
        span: its span.
        batches: number of its batches.
        batch: the span of its open batch; None if no batch is open, or if it has no span.
        error: the exception of its code; None for none.
        text: the span, as `traceparent`; empty for none.
    """

    __slots__ = ("_token", "batch", "batches", "error", "span", "text")

    def __init__(self, span: Span) -> None:
        self.span = span
        self.batches = 0
        self.batch: Span | None = None
        self._token: Token[Context] | None = None
        self.error: BaseException | None = None
        self.text = ""

    def enter_batch(self, span: Span) -> None:
        """Let the spans that the body of a batch makes be children of that of the batch."""
        self.batch, self._token = span, attach(trace.set_span_in_context(span))

    def leave_batch(self) -> Span | None:
        """Return the span of the open batch, which is not ended here; None if there is none."""
        batch, token = self.batch, self._token
        self.batch = self._token = None
        if token is not None:
            with suppress(ValueError):  # the job has asked for the batch in a task of its own
                token.var.reset(token)
        return batch


class RunTracing(Middleware):
    """The outermost middleware, which runs each attempt in its span.

    Args:
        settings: the settings.
        worker: name of the worker.
        note_span: called with the id of a run and the span of its attempt, to keep that for the next attempt.

    Attributes:
        observer: makes the spans of batches, and ends those of attempts.
    """

    observer: RunSpans

    def __init__(self, settings: Settings, worker: str, note_span: Callable[[str, str], None]) -> None:
        self.observer = RunSpans(settings, worker, note_span)

    async def run(self, ctx: JobContext, proceed: Callable[[], Awaitable[Any]]) -> Any:
        """Run an attempt in its span."""
        has_ledger_run = ctx._attempt.ledger_run is not None
        return await self.observer.run_attempt(
            proceed, headers=ctx.headers, redis=ctx.redis, has_ledger_run=has_ledger_run
        )


class RunSpans(Observer):
    """The spans of the attempts of a worker, and of their batches.

    Args:
        settings: the settings.
        worker: name of the worker.
        note_span: called with the id of a run and the span of its attempt, to keep that for the next attempt.
    """

    def __init__(self, settings: Settings, worker: str, note_span: Callable[[str, str], None]) -> None:
        self._tracer = trace.get_tracer("longhaul")
        self._worker = worker
        self._batch_spans = settings.tracing.batch_spans
        self._namespace = settings.database.url.rpartition("/")[2].partition("?")[0]
        self._note_span = note_span
        self._claimed: dict[str, RunInfo] = {}
        self._traced: dict[str, _Traced] = {}
        #: The last attempt and its span of runs that went back to the queue: a payload of arq's form cannot have them.
        self._former: dict[str, tuple[int, str]] = {}

    async def run_attempt(
        self,
        proceed: Callable[[], Awaitable[Any]],
        *,
        headers: Mapping[str, str],
        redis: Any,
        has_ledger_run: bool = False,
    ) -> Any:
        """Run the attempt of this context in its span.

        Args:
            proceed: runs it.
            headers: those of its run.
            redis: reads the spans that it is linked to; None to link those of the headers alone.
            has_ledger_run: whether the ledger had the run before the attempt.
        """
        fields = current_attempt.get()
        info = None if fields is None else self._claimed.get(fields.run)
        if fields is None or info is None:
            return await proceed()  # the run has ended meanwhile
        links = await self._links(info, fields, headers, redis, has_ledger_run=has_ledger_run)
        attributes = self._attributes(info, fields)
        name = f"run {fields.job}"
        span = start_span(self._tracer, name, kind=SpanKind.CONSUMER, links=links, attributes=attributes)
        self._traced[info.run_id] = traced = _Traced(span)
        with trace.use_span(span, end_on_exit=False, record_exception=False, set_status_on_exception=False):
            self._note(fields)
            traced.text = fields.span
            try:
                return await proceed()
            except (asyncio.CancelledError, AttemptExit, JobInterrupted, Snooze):
                raise
            except BaseException as error:
                if self._traced.get(info.run_id) is traced:  # else the job was abandoned, and its span has ended
                    traced.error = error
                    record_error(span, error)
                raise
            finally:
                if fields.step and span.is_recording():
                    span.set_attribute("longhaul.step", fields.step)

    def _note(self, fields: AttemptFields) -> None:
        """Note the current span as that of the attempt: for its log, its next attempt, and runs that follow it."""
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            fields.span = current_headers()["traceparent"]
            fields.trace_id = f"{span.trace_id:032x}"
            self._note_span(fields.run, fields.span)

    def _attributes(self, info: RunInfo, fields: AttemptFields) -> dict[str, Any]:
        attributes = {
            "messaging.system": SYSTEM,
            "messaging.operation.name": "run",
            "messaging.operation.type": "process",
            "messaging.destination.name": info.queue,
            "messaging.message.id": info.run_id,
            "messaging.client.id": self._worker,
            "longhaul.job": info.job,
            "longhaul.attempt": fields.attempt,
            "longhaul.took_over": info.took_over,
        }
        return {**attributes, "longhaul.helps": info.helps} if info.helps else attributes

    async def _links(
        self,
        info: RunInfo,
        fields: AttemptFields,
        headers: Mapping[str, str],
        redis: Any,
        *,
        has_ledger_run: bool,
    ) -> list[Link]:
        """Return links to the former attempt, and to the runs that this one follows."""
        attempt, span = self._former.pop(info.run_id, (-1, ""))
        is_last = fields.attempt - 1 <= attempt  # else another worker has had the run since then
        former = headers.get(FORMER_SPAN) or (span if is_last else "")
        followed = [headers.get(FOLLOWED_SPAN, "")]
        is_lost = info.took_over or (not former and (fields.attempt > 1 or has_ledger_run))
        is_callback = info.run_id.endswith(_GROUP_SUFFIX) and not former
        if redis is not None and (is_lost or is_callback):
            try:
                if is_lost:
                    former = ((await redis.hget(keys.RUN + info.run_id, "span")) or b"").decode() or former
                if is_callback:
                    group = await redis.hgetall(keys.GROUP + info.run_id.removesuffix(_GROUP_SUFFIX))
                    followed += [value.decode() for name, value in group.items() if name.startswith(b"span:")]
            except (RedisError, OSError, UnicodeDecodeError):
                pass  # the links are missing, and the run continues
        links = [_link(former, "former_attempt"), *(_link(one, "followed_run") for one in followed[:_MOST_FOLLOWED])]
        return [link for link in links if link is not None]

    # --- events

    def batch_began(self, run: RunInfo) -> None:
        """Open the span of a batch, if this batch is to have one."""
        traced = self._traced.get(run.run_id)
        if traced is None:
            return
        traced.leave_batch()  # the one before had no rows
        if has_span(traced.batches + 1, self._batch_spans):
            traced.enter_batch(self._start_batch(run, traced, time.time_ns()))

    def walk_ended(self, run: RunInfo, *, failed: bool) -> None:
        """End the span of a batch that is rolled back. Without an error, there was no other batch: forget its span."""
        traced = self._traced.get(run.run_id)
        batch = None if traced is None else traced.leave_batch()
        if batch is not None and failed:
            batch.set_status(Status(StatusCode.ERROR, "rolled back"))
            batch.end()

    def _start_batch(self, run: RunInfo, traced: _Traced, began_ns: int) -> Span:
        attributes = {"db.system.name": "postgresql", "db.namespace": self._namespace, "longhaul.job": run.job}
        context = trace.set_span_in_context(traced.span)
        return self._tracer.start_span(f"batch {run.job}", context, attributes=attributes, start_time=began_ns)

    def started(self, run: RunInfo) -> None:
        """Note the run."""
        self._claimed[run.run_id] = run
        if len(self._claimed) > _MOST_RUNNING:
            self._drop(next(iter(self._claimed)))

    def progressed(self, run: RunInfo, progress: Progress, *, rows: int) -> None:
        """End the span of a batch. One of a source that is no table begins and ends here."""
        traced = self._traced.get(run.run_id)
        if traced is None or not progress.batches:
            return
        traced.batches += 1
        span = traced.leave_batch()
        if not has_span(traced.batches, self._batch_spans):
            return
        now = time.time_ns()
        span = span or self._start_batch(run, traced, now - round(progress.batch_seconds * _SECOND_NS))
        span.set_attributes(
            {
                "longhaul.step": progress.step,
                "longhaul.batch": progress.batches,
                "longhaul.rows": progress.batch_size,
                "longhaul.quarantined": progress.quarantined,
            }
        )
        span.end(now)
        traced.span.set_attribute("longhaul.rows", rows)

    def throttled(
        self, run: RunInfo, reason: str | None, *, since: datetime, until: datetime | None, kind: str = ""
    ) -> None:
        """Note on the span of the attempt that its walk waits."""
        traced = self._traced.get(run.run_id)
        if traced is not None and reason and kind and traced.batches <= self._batch_spans:
            traced.span.add_event("throttled", {"longhaul.reason": kind})

    def requeued(
        self, run: RunInfo, state: str, *, error: str | None = None, delay: float = 0.0, how: str = "released"
    ) -> None:
        """End the span of an attempt whose run goes back to the queue."""
        traced = self._traced.get(run.run_id)
        if traced is not None and traced.text:
            self._former[run.run_id] = run.attempt, traced.text
            if len(self._former) > _MOST_RUNNING:
                del self._former[next(iter(self._former))]
        failed = traced is not None and traced.error is not None
        outcome = "retry" if failed else state if state == "paused" else how
        self._end(run, outcome, error if failed else None)

    def ended(self, run: RunInfo, state: str, *, error: str | None = None, result: Any = None) -> None:
        """End the span of the last attempt."""
        self._end(run, state, (error or state) if state in ("dead", "incomplete") else None)

    def lost(self, run: RunInfo) -> None:
        """End the span of an attempt that another worker has replaced."""
        self._end(run, "lost", "another worker has the run")

    async def close(self) -> None:
        """End the open spans, and send what the provider of the application has kept."""
        for run_id in list(self._claimed):
            self._drop(run_id)
        flush = getattr(trace.get_tracer_provider(), "force_flush", None)
        if flush is not None:
            await asyncio.wait_for(asyncio.to_thread(flush), _SECONDS_TO_FLUSH)

    def _end(self, run: RunInfo, outcome: str, error: str | None) -> None:
        self._claimed.pop(run.run_id, None)
        traced = self._traced.pop(run.run_id, None)
        if traced is None:
            return
        if (batch := traced.leave_batch()) is not None:  # of an abandoned job
            batch.set_status(Status(StatusCode.ERROR, outcome))
            batch.end()
        traced.span.set_attribute("longhaul.outcome", outcome)
        traced.span.set_attribute("longhaul.batches", traced.batches)
        if error is not None:
            kind = type(traced.error).__qualname__ if traced.error is not None else outcome
            traced.span.set_attribute("error.type", kind)
            traced.span.set_status(Status(StatusCode.ERROR, error))
        traced.span.end()

    def _drop(self, run_id: str) -> None:
        run = self._claimed[run_id]
        self._end(run, "left to its lease", "the worker has ended before it could write the outcome")


def has_span(number: int, all_of: int) -> bool:
    """Return whether a batch has a span: each of the first ones, then every second, fourth, eighth …

    Args:
        number: number of the batch in its attempt, from 1.
        all_of: number of the first batches that have a span each. From there on, half as many have one each time the
            number of batches doubles; 0 for none.
    """
    if all_of <= 0:
        return False
    return number % (1 << ((number - 1) // all_of).bit_length()) == 0


def _link(text: str, kind: str) -> Link | None:
    """Return a link to the span of a `traceparent`; None for any other text."""
    parsed = parse_traceparent(text)
    if parsed is None:
        return None
    trace_id, span_id, flags = (int(part, 16) for part in parsed)
    context = NonRecordingSpan(SpanContext(trace_id, span_id, True, TraceFlags(flags))).get_span_context()
    return Link(context, {"longhaul.link": kind})
