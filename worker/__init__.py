"""Longhaul: background jobs that walk large tables exactly once per row, on Redis and PostgreSQL.

Import these names from `worker`. Each is loaded when it is first used, so that a service that only enqueues jobs loads
neither SQLAlchemy, asyncpg, Alembic nor arq.

Write a job:
    `job` makes a function a `Job`; `JobContext` is its first argument; `Batch` and `Bulk` are what its loops yield and
    write with.

Walk data outside of tables:
    `Source` is the protocol of what `ctx.walk` walks; its methods take and return `OpenStep`, `Bounds` and `Page`.

Configure a ready-made job:
    `maintenance` has one for each common task: `from worker.maintenance import purge`.

End an attempt from inside a job:
    `Retry`, `Snooze` and `NonRetryableError`; `JobInterrupted` arrives in plain functions that are cancelled.

Enqueue, wait and operate:
    `Client` makes `Run` and `Group`, and `SyncClient` does the same without an event loop; `PREVIOUS_RESULT` passes a
    result on; `JobFailed` and `JobCancelled` are raised by `Run.result`; `InvalidArguments`, `ServerUnavailable` and
    `LonghaulError`, the base of all errors, by all of them.

Add to every job:
    `Middleware` and `EnqueueCall`; `propagate`, `traceparent` and `tracestate` for context variables that travel.

Run a worker:
    `running` runs a `Worker` in your event loop: `async with running(settings, jobs=[...])`; `discover` imports the
    jobs of packages; `Settings` and `load_settings`.

More lives in `worker.plan` (what a job would do), `worker.errors` (all errors), `worker.throttles` (throttles of one's
own), `worker.types` (types for annotations), `worker.testing` (the pytest plugin) and `worker.arq_compat` (a stand-in
for `arq.Worker`).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

# `job` cannot wait: importing any module of the package `worker.job` would put that package in its place.
from worker.job.decorator import job

if TYPE_CHECKING:
    from worker.attempt.context import JobContext
    from worker.batch.batch import Batch
    from worker.batch.bulk.operations import Bulk
    from worker.batch.source import Bounds, OpenStep, Page, Source
    from worker.errors import (
        InvalidArguments,
        JobCancelled,
        JobFailed,
        JobInterrupted,
        LonghaulError,
        NonRetryableError,
        Retry,
        ServerUnavailable,
        Snooze,
    )
    from worker.job.call import PREVIOUS_RESULT
    from worker.job.definition import Job
    from worker.job.middleware import EnqueueCall, Middleware
    from worker.job.propagation import propagate, traceparent, tracestate
    from worker.job.registry import discover
    from worker.launch import running
    from worker.queue.client import Client
    from worker.queue.group import Group
    from worker.queue.run import Run
    from worker.queue.sync_client import SyncClient
    from worker.runtime.worker import Worker
    from worker.settings.model import Settings
    from worker.settings.sources import load_settings

    __version__: str

_HOMES = {
    "PREVIOUS_RESULT": "worker.job.call",
    "Batch": "worker.batch.batch",
    "Bounds": "worker.batch.source",
    "Bulk": "worker.batch.bulk.operations",
    "Client": "worker.queue.client",
    "EnqueueCall": "worker.job.middleware",
    "Group": "worker.queue.group",
    "InvalidArguments": "worker.errors",
    "Job": "worker.job.definition",
    "JobCancelled": "worker.errors",
    "JobContext": "worker.attempt.context",
    "JobFailed": "worker.errors",
    "JobInterrupted": "worker.errors",
    "LonghaulError": "worker.errors",
    "Middleware": "worker.job.middleware",
    "NonRetryableError": "worker.errors",
    "OpenStep": "worker.batch.source",
    "Page": "worker.batch.source",
    "Retry": "worker.errors",
    "Run": "worker.queue.run",
    "ServerUnavailable": "worker.errors",
    "Settings": "worker.settings.model",
    "Snooze": "worker.errors",
    "Source": "worker.batch.source",
    "SyncClient": "worker.queue.sync_client",
    "Worker": "worker.runtime.worker",
    "discover": "worker.job.registry",
    "load_settings": "worker.settings.sources",
    "propagate": "worker.job.propagation",
    "running": "worker.launch",
    "traceparent": "worker.job.propagation",
    "tracestate": "worker.job.propagation",
}

__all__ = [
    "PREVIOUS_RESULT",
    "Batch",
    "Bounds",
    "Bulk",
    "Client",
    "EnqueueCall",
    "Group",
    "InvalidArguments",
    "Job",
    "JobCancelled",
    "JobContext",
    "JobFailed",
    "JobInterrupted",
    "LonghaulError",
    "Middleware",
    "NonRetryableError",
    "OpenStep",
    "Page",
    "Retry",
    "Run",
    "ServerUnavailable",
    "Settings",
    "Snooze",
    "Source",
    "SyncClient",
    "Worker",
    "__version__",
    "discover",
    "job",
    "load_settings",
    "propagate",
    "running",
    "traceparent",
    "tracestate",
]


def __getattr__(name: str) -> Any:
    """Load a public name (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version  # takes longer to import than all of this package's own names

        value: Any = version("longhaul-worker")
    elif name == "maintenance":
        value = import_module("worker.maintenance")
    elif name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
