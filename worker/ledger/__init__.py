"""The ledger: the durable record of runs, in PostgreSQL."""

from worker.ledger.ledger import Ledger
from worker.ledger.owned_run import OwnedRun
from worker.ledger.records import RunRecord, RunSpec, StepRecord, StepSpec

__all__ = ["Ledger", "OwnedRun", "RunRecord", "RunSpec", "StepRecord", "StepSpec"]
