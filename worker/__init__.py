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
    ServerUnavailable,
    SettingsError,
    StatementRefused,
    UnknownJob,
)
from worker.registry import Job, job
from worker.settings import Settings, load_settings

__all__ = [
    "Batch",
    "BatchKilledWorker",
    "Bulk",
    "BulkError",
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
    "RegistrationError",
    "ResultTooLarge",
    "Retry",
    "ServerUnavailable",
    "Settings",
    "SettingsError",
    "StatementRefused",
    "UnknownJob",
    "job",
    "load_settings",
]
