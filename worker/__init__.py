"""Longhaul: a background worker for jobs that walk whole tables, exactly once per row, whatever dies.

What stands in `__all__` is public; jobs and other services import nothing deeper, except `worker.testing`.
"""

from worker.arq_compat.worker import Worker, create_worker, get_kwargs, run_worker
from worker.attempt.context import JobContext
from worker.batch import Batch, Bulk
from worker.batch.gather import Outcome
from worker.batch.throttle import (
    CustomThrottle,
    ForcedCheckpoints,
    RowsPerSecond,
    ServerMetric,
    Throttle,
    ThrottleContext,
    TimeWindow,
    Wait,
    WalRate,
)
from worker.db.engine import Database
from worker.errors import (
    BulkError,
    CursorMismatch,
    DatabaseNotMigrated,
    InvalidArguments,
    InvalidPayload,
    JobCancelled,
    JobFailed,
    JobInterrupted,
    JobProcessDied,
    LazyLoadError,
    LonghaulError,
    NonRetryableError,
    PoisonBatch,
    RegistrationError,
    ResultTooLarge,
    Retry,
    RunIdConflict,
    ServerUnavailable,
    SettingsError,
    Snooze,
    StallTimeout,
    UnknownJob,
    UnsupportedStatement,
    UsageError,
)
from worker.job.call import PREVIOUS_RESULT, Call
from worker.job.decorator import job
from worker.job.definition import Job
from worker.job.middleware import EnqueueCall, Middleware
from worker.job.propagation import propagate
from worker.job.registry import Registry, discover
from worker.job.trace_context import traceparent, tracestate
from worker.queue.client import Client
from worker.queue.group import Group, GroupProgress
from worker.queue.run import ProgressReport, Run
from worker.settings import Settings, load_settings

__all__ = [
    "PREVIOUS_RESULT",
    "Batch",
    "Bulk",
    "BulkError",
    "Call",
    "Client",
    "CursorMismatch",
    "CustomThrottle",
    "Database",
    "DatabaseNotMigrated",
    "EnqueueCall",
    "ForcedCheckpoints",
    "Group",
    "GroupProgress",
    "InvalidArguments",
    "InvalidPayload",
    "Job",
    "JobCancelled",
    "JobContext",
    "JobFailed",
    "JobInterrupted",
    "JobProcessDied",
    "LazyLoadError",
    "LonghaulError",
    "Middleware",
    "NonRetryableError",
    "Outcome",
    "PoisonBatch",
    "ProgressReport",
    "RegistrationError",
    "Registry",
    "ResultTooLarge",
    "Retry",
    "RowsPerSecond",
    "Run",
    "RunIdConflict",
    "ServerMetric",
    "ServerUnavailable",
    "Settings",
    "SettingsError",
    "Snooze",
    "StallTimeout",
    "Throttle",
    "ThrottleContext",
    "TimeWindow",
    "UnknownJob",
    "UnsupportedStatement",
    "UsageError",
    "Wait",
    "WalRate",
    "Worker",
    "create_worker",
    "discover",
    "get_kwargs",
    "job",
    "load_settings",
    "propagate",
    "run_worker",
    "traceparent",
    "tracestate",
]
