"""The ledger: the durable record of runs, in PostgreSQL."""

from worker.ledger.ledger import Ledger
from worker.ledger.owned_run import OwnedRun
from worker.ledger.records import Hand, MissingMigration, RangeRecord, RunRecord, RunSpec, Sample, StepRecord, StepSpec

__all__ = [
    "Hand",
    "Ledger",
    "MissingMigration",
    "OwnedRun",
    "RangeRecord",
    "RunRecord",
    "RunSpec",
    "Sample",
    "StepRecord",
    "StepSpec",
]
