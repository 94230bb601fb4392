"""The durable loops: chunks, stream and sweep, and the bulk operations inside them."""

from worker.batch.batch import Batch
from worker.batch.bulk import Bulk
from worker.batch.chunks import Chunks
from worker.batch.stream import Stream
from worker.batch.sweep import Sweep
from worker.batch.walk import Host, Loop, Progress, went_on_after

__all__ = ["Batch", "Bulk", "Chunks", "Host", "Loop", "Progress", "Stream", "Sweep", "went_on_after"]
