"""The durable loops: one engine (`walk.py`), the sources that it walks, and the bulk operations inside a batch."""

from worker.batch.batch import Batch, Outcome
from worker.batch.bulk.operations import Bulk
from worker.batch.loop_exit import swallowed_error_message
from worker.batch.source import Bounds, OpenStep, Page, Source
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
    "Source",
    "Walk",
    "WalkHost",
    "swallowed_error_message",
]
