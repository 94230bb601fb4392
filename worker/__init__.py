"""Longhaul: a background worker for jobs that walk whole tables, exactly once per row, whatever dies.

What stands in `__all__` is public; jobs and other services import nothing deeper, except `worker.testing`.
"""

from worker.arq_compat.worker import Worker, create_worker, get_kwargs, run_worker
from worker.attempt.context import JobContext
from worker.batch import Batch, Bulk
from worker.batch.gather import Outcome
from worker.batch.throttle import (
    Custom,
    ForcedCheckpoints,
    Hold,
    RowsPerSecond,
    Seen,
    ServerFigure,
    Throttle,
    WalRate,
    Window,
)
from worker.db.engine import Database
from worker.errors import (
    BatchKilledWorker,
    BulkError,
    CursorMismatch,
    DatabaseNotMigrated,
    Interrupted,
    InvalidArguments,
    InvalidPayload,
    JobCancelled,
    JobFailed,
    LazyLoadError,
    LonghaulError,
    Misuse,
    NotRetryable,
    ProcessDied,
    RegistrationError,
    ResultTooLarge,
    Retry,
    RunIdTaken,
    ServerUnavailable,
    SettingsError,
    Snooze,
    Stalled,
    StatementRefused,
    UnknownJob,
)
from worker.job.call import RESULT, Call
from worker.job.definition import Job, job
from worker.job.middleware import EnqueueCall, Middleware
from worker.job.propagation import carry
from worker.job.registry import Registry, discover
from worker.job.trace_context import traceparent, tracestate
from worker.queue.client import Client
from worker.queue.group import Group, GroupProgress
from worker.queue.run import ProgressReport, Run
from worker.settings.model import Settings, load_settings

__all__ = [
    "RESULT",
    "Batch",
    "BatchKilledWorker",
    "Bulk",
    "BulkError",
    "Call",
    "Client",
    "CursorMismatch",
    "Custom",
    "Database",
    "DatabaseNotMigrated",
    "EnqueueCall",
    "ForcedCheckpoints",
    "Group",
    "GroupProgress",
    "Hold",
    "Interrupted",
    "InvalidArguments",
    "InvalidPayload",
    "Job",
    "JobCancelled",
    "JobContext",
    "JobFailed",
    "LazyLoadError",
    "LonghaulError",
    "Middleware",
    "Misuse",
    "NotRetryable",
    "Outcome",
    "ProcessDied",
    "ProgressReport",
    "RegistrationError",
    "Registry",
    "ResultTooLarge",
    "Retry",
    "RowsPerSecond",
    "Run",
    "RunIdTaken",
    "Seen",
    "ServerFigure",
    "ServerUnavailable",
    "Settings",
    "SettingsError",
    "Snooze",
    "Stalled",
    "StatementRefused",
    "Throttle",
    "UnknownJob",
    "WalRate",
    "Window",
    "Worker",
    "carry",
    "create_worker",
    "discover",
    "get_kwargs",
    "job",
    "load_settings",
    "run_worker",
    "traceparent",
    "tracestate",
]
