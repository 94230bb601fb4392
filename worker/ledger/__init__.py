"""The ledger: the durable record of runs, in PostgreSQL."""

from worker.ledger.ledger import Ledger
from worker.ledger.owned_run import OwnedRun
from worker.ledger.records import Hand, RunRecord, RunSpec, StepRecord, StepSpec

__all__ = ["Hand", "Ledger", "OwnedRun", "RunRecord", "RunSpec", "StepRecord", "StepSpec"]
