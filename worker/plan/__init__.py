"""Looks at a job before it runs: `make_plan` reads, `try_job` runs some batches and rolls each back."""

from worker.plan.loop_plan import LoopPlan
from worker.plan.plan import JobPlan, make_plan

__all__ = ["JobPlan", "LoopPlan", "make_plan"]
