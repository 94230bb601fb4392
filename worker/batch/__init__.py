"""The durable loops: chunks, stream and sweep, and the bulk operations inside them."""

from worker.batch.batch import Batch
from worker.batch.bulk import Bulk
from worker.batch.chunks import Chunks
from worker.batch.stream import Stream
from worker.batch.sweep import Sweep
from worker.batch.walk import Progress, Walk, WalkHost, swallowed_error_message

__all__ = ["Batch", "Bulk", "Chunks", "Progress", "Stream", "Sweep", "Walk", "WalkHost", "swallowed_error_message"]
