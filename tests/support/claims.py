"""Claims for a test that acts as a worker."""

from __future__ import annotations

from worker.queue.claims import Claim
from worker.queue.store import QueueStore


async def claim_jobs(store: QueueStore, queue: str, slots: int) -> list[Claim]:
    """Claim up to `slots` due jobs of a queue."""
    return (await store.ack_and_claim((), slots, [(queue, slots)])).claims
