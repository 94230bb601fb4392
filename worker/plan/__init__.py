"""Looks at a job before it runs: `make_plan` reads, `try_job` runs some batches and rolls each back."""

from worker.plan.changes import RowChange
from worker.plan.gate import DataMigrationMissing, require_data_migrations
from worker.plan.loop_plan import LoopPlan
from worker.plan.plan import JobPlan, make_plan
from worker.plan.trial import Trial, try_job
from worker.plan.trial_walk import BatchTrial

__all__ = [
    "BatchTrial",
    "DataMigrationMissing",
    "JobPlan",
    "LoopPlan",
    "RowChange",
    "Trial",
    "make_plan",
    "require_data_migrations",
    "try_job",
]
