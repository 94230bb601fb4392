"""Types of arguments and results of the public API, for annotations."""

from worker.batch.batch import Outcome
from worker.db.engine import Database
from worker.job.call import Call
from worker.job.registry import Registry
from worker.queue.group import GroupProgress
from worker.queue.run import ProgressReport, Status

__all__ = ["Call", "Database", "GroupProgress", "Outcome", "ProgressReport", "Registry", "Status"]
