"""The durable loops: one engine (`walk.py`), the sources that it walks, and the bulk operations inside a batch."""

from worker.batch.batch import Batch, Outcome
from worker.batch.bulk.operations import Bulk
from worker.batch.loop_exit import swallowed_error_message
from worker.batch.source import Bounds, OpenStep, Page, RejectedRow, Source
from worker.batch.walk import Walk
from worker.batch.walk_host import Progress, WalkHost

__all__ = [
    "Batch",
    "Bounds",
    "Bulk",
    "OpenStep",
    "Outcome",
    "Page",
    "Progress",
    "RejectedRow",
    "Source",
    "Walk",
    "WalkHost",
    "swallowed_error_message",
]
