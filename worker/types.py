"""Types of arguments and results of the public API, for annotations."""

from worker.batch.batch import Outcome
from worker.db.engine import Database
from worker.job.call import Call
from worker.job.registry import Registry
from worker.ledger.records import QuarantinedRow, RangeState, RunRecord, StepRecord
from worker.queue.commands import OperatorLimits
from worker.queue.cron_lines import CronStatus
from worker.queue.dead_letters import DeadLetter
from worker.queue.group import GroupProgress
from worker.queue.overview import Overview, RunSummary, WorkerStatus
from worker.queue.run import ProgressReport, Status
from worker.queue.run_details import RunDetails
from worker.queue.run_log import LogLine
from worker.queue.sync_run import SyncGroup, SyncRun

__all__ = [
    "Call",
    "CronStatus",
    "Database",
    "DeadLetter",
    "GroupProgress",
    "LogLine",
    "OperatorLimits",
    "Outcome",
    "Overview",
    "ProgressReport",
    "QuarantinedRow",
    "RangeState",
    "Registry",
    "RunDetails",
    "RunRecord",
    "RunSummary",
    "Status",
    "StepRecord",
    "SyncGroup",
    "SyncRun",
    "WorkerStatus",
]
