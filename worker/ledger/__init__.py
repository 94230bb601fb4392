"""The ledger: the durable truth about runs, in PostgreSQL."""

from worker.ledger.record import RunRecord, RunSpec, StepRecord, StepSpec
from worker.ledger.run import LedgerRun
from worker.ledger.runs import Ledger

__all__ = ["Ledger", "LedgerRun", "RunRecord", "RunSpec", "StepRecord", "StepSpec"]
