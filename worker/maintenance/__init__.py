"""Ready-made jobs for long work on tables: configured, not programmed.

Each function returns an ordinary `Job`: assign it to a variable of a module of `worker.packages`.
"""

from worker.maintenance.archiving import archive
from worker.maintenance.backfill import backfill_column
from worker.maintenance.constraints import validate_constraint
from worker.maintenance.copying import copy_table
from worker.maintenance.deduplication import dedupe
from worker.maintenance.exporting import export_table
from worker.maintenance.loading import load_file
from worker.maintenance.purging import purge
from worker.maintenance.recomputation import recompute

__all__ = [
    "archive",
    "backfill_column",
    "copy_table",
    "dedupe",
    "export_table",
    "load_file",
    "purge",
    "recompute",
    "validate_constraint",
]
