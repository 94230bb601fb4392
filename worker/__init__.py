"""Longhaul: a background worker for jobs that walk whole tables, exactly once per row, whatever dies.

What stands in `__all__` is public; jobs and other services import nothing deeper, except `worker.testing`.
"""

from worker.batch import Batch, Bulk
from worker.context import JobContext
from worker.db.engine import Database
from worker.errors import (
    BatchKilledWorker,
    BulkError,
    CursorMismatch,
    DatabaseNotMigrated,
    InvalidArguments,
    InvalidPayload,
    JobCancelled,
    JobFailed,
    LazyLoadError,
    LonghaulError,
    NotRetryable,
    RegistrationError,
    ResultTooLarge,
    Retry,
    RunIdTaken,
    ServerUnavailable,
    SettingsError,
    StatementRefused,
    UnknownJob,
)
from worker.queue.client import Client, ProgressReport, Run
from worker.queue.worker import Worker
from worker.registry import Job, Registry, discover, job
from worker.settings import Settings, load_settings

__all__ = [
    "Batch",
    "BatchKilledWorker",
    "Bulk",
    "BulkError",
    "Client",
    "CursorMismatch",
    "Database",
    "DatabaseNotMigrated",
    "InvalidArguments",
    "InvalidPayload",
    "Job",
    "JobCancelled",
    "JobContext",
    "JobFailed",
    "LazyLoadError",
    "LonghaulError",
    "NotRetryable",
    "ProgressReport",
    "RegistrationError",
    "Registry",
    "ResultTooLarge",
    "Retry",
    "Run",
    "RunIdTaken",
    "ServerUnavailable",
    "Settings",
    "SettingsError",
    "StatementRefused",
    "UnknownJob",
    "Worker",
    "discover",
    "job",
    "load_settings",
]
