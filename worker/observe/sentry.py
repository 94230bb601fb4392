"""Reports failed runs to Sentry, each with its run, job, step, batch and row.

    worker.middleware = ["worker.observe.sentry:SentryReporter"]

The application calls `sentry_sdk.init`. An attempt runs in an isolation scope of its own, so tags and breadcrumbs of
concurrent jobs do not mix.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal

import sentry_sdk
from sentry_sdk.integrations.logging import ignore_logger
from sentry_sdk.utils import event_from_exception

from worker.errors import AttemptExit, JobInterrupted, JobProcessError, Snooze
from worker.job.middleware import Middleware
from worker.job.propagation import AttemptFields, current_attempt
from worker.runtime.observer import Observer, RunInfo

if TYPE_CHECKING:
    from worker.attempt.context import JobContext

#: Its lines about failed attempts would be events, too.
_WORKER_LOGGER = "longhaul.jobs"
_UNFINISHED = (asyncio.CancelledError, AttemptExit, JobInterrupted, Snooze)


class SentryReporter(Middleware):
    """Middleware that reports runs which have failed.

    Args:
        when: "dead" reports a run once, when it has failed permanently, or its `verify=` has found rows that are left
            undone; "attempt" reports each failed attempt, those that are retried as warnings.
        arguments: whether to send the run's arguments, and the local variables of the frames. They may be personal.

    Attributes:
        observer: reports an error when the outcome of its attempt is known.
    """

    observer: _Outcomes

    def __init__(self, *, when: Literal["dead", "attempt"] = "dead", arguments: bool = False) -> None:
        self._sends_arguments = arguments
        self.observer = _Outcomes(reports_retries=when == "attempt")
        ignore_logger(_WORKER_LOGGER)

    async def run(self, ctx: JobContext, proceed: Callable[[], Awaitable[Any]]) -> Any:
        """Run an attempt in a scope of its own, and keep its error until its outcome is known."""
        fields = current_attempt.get() or AttemptFields(ctx.run_id, ctx.job, ctx.attempt)
        with sentry_sdk.isolation_scope() as scope:
            scope.set_transaction_name(ctx.job)
            _tag(scope, fields.run, ctx.job, fields.attempt)
            try:
                return await proceed()
            except _UNFINISHED:
                raise
            except BaseException as error:
                self._describe(scope, ctx, fields, error)
                event, hint = event_from_exception(
                    error,
                    client_options=sentry_sdk.get_client().options,
                    mechanism={"type": "longhaul", "handled": False},
                )
                if not self._sends_arguments:
                    _drop_variables(event)
                self.observer.failed[fields.run] = (scope, event, hint)
                raise

    def _describe(self, scope: sentry_sdk.Scope, ctx: JobContext, fields: AttemptFields, error: BaseException) -> None:
        attempt = ctx._attempt
        known: dict[str, Any] = {"run": fields.run, "job": ctx.job, "attempt": attempt.number, "step": fields.step}
        known |= {"batch": attempt.where, "helps": fields.helps, "trace_id": fields.trace_id}
        if attempt.failure is not None and attempt.failure.key is not None:
            known["row_key"] = json.dumps(attempt.failure.key)
        if isinstance(error, JobProcessError):
            known["process_traceback"] = error.traceback
        scope.set_context("longhaul", {name: value for name, value in known.items() if value is not None})
        scope.set_tag("longhaul.attempt", str(attempt.number))
        if fields.step:
            scope.set_tag("longhaul.step", fields.step)
        if self._sends_arguments:
            scope.set_context("longhaul arguments", {"json": attempt._spec().arguments})


class _Outcomes(Observer):
    """Reports an error when the outcome of its attempt is known.

    Args:
        reports_retries: whether to report attempts that are retried.

    Attributes:
        failed: the scope, event and hint of the error of attempts whose outcome is not known yet, by run id.
    """

    def __init__(self, *, reports_retries: bool) -> None:
        self.failed: dict[str, tuple[sentry_sdk.Scope, Any, Any]] = {}
        self._reports_retries = reports_retries

    def requeued(
        self, run: RunInfo, state: str, *, error: str | None = None, delay: float = 0.0, how: str = "released"
    ) -> None:
        """Report the attempt as a warning, if each attempt is to be reported."""
        failed = self.failed.pop(run.run_id, None)
        if failed is not None and self._reports_retries:
            _send(*failed, level="warning")

    def ended(self, run: RunInfo, state: str, *, error: str | None = None, result: Any = None) -> None:
        """Report a run that has failed permanently."""
        failed = self.failed.pop(run.run_id, None)
        if state not in ("dead", "incomplete") or run.helps:
            return  # the run that a helper helps fails with the same error, or has continued without it
        if failed is not None:
            _send(*failed, level="error")
            return
        with sentry_sdk.isolation_scope() as scope:  # it has timed out, or has never begun
            _tag(scope, run.run_id, run.job, run.attempt)
            scope.set_context("longhaul", {"run": run.run_id, "job": run.job, "attempt": run.attempt})
            scope.capture_message(f"{run.job} {state}: {error}", level="error")

    def lost(self, run: RunInfo) -> None:
        """Forget the error: another worker has the run."""
        self.failed.pop(run.run_id, None)

    async def close(self) -> None:
        """Send what is kept."""
        await asyncio.to_thread(sentry_sdk.flush, 2.0)


def _tag(scope: sentry_sdk.Scope, run_id: str, job: str, attempt: int) -> None:
    scope.set_tag("longhaul.run", run_id)
    scope.set_tag("longhaul.job", job)
    scope.set_tag("longhaul.attempt", str(attempt))


def _send(scope: sentry_sdk.Scope, event: Any, hint: Any, *, level: str) -> None:
    event["level"] = level
    with sentry_sdk.scope.use_isolation_scope(scope):
        sentry_sdk.capture_event(event, hint)


def _drop_variables(event: Any) -> None:
    """Remove the local variables of all frames: they hold arguments and rows."""
    for one in event.get("exception", {}).get("values", ()):
        for frame in (one.get("stacktrace") or {}).get("frames", ()):
            frame.pop("vars", None)
