"""`worker retry`: an ended run, or a dead letter, goes back into the queue; and so do rows in quarantine."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import cast

from redis.asyncio import Redis

from worker.ledger import Ledger
from worker.queue import keys
from worker.queue.client import Client
from worker.queue.codec import decode_payload, now_ms
from worker.queue.dead import DeadLetter
from worker.queue.store import QueueStore

_MANY = 1_000_000


async def retry_run(redis: Redis, ledger: Ledger, run_id: str, *, from_start: bool) -> bool:
    """Put an ended run back.

    The ledger comes first: should this process die in between, the rescue of a worker does the rest.

    Args:
        redis: where the queue is.
        ledger: where runs with a durable loop are.
        run_id: id of the run.
        from_start: forget its checkpoints.

    Returns:
        False where there is neither an ended run nor a dead letter of that id.
    """
    store = QueueStore(redis)
    spec = await ledger.retry(run_id, from_start=from_start)
    if spec is not None:
        return await store.put_again(run_id, spec.payload.encode(), queue=spec.queue, letter=False)
    raw = await cast(Awaitable[bytes | None], redis.hget(keys.DEAD, run_id))
    letter = None if raw is None else DeadLetter.read(run_id, raw)
    if letter is None or letter.in_ledger:
        return False
    return await store.put_again(run_id, letter.payload, queue=letter.queue, letter=True)


async def retry_quarantined(client: Client, ledger: Ledger, run_id: str) -> list[str]:
    """Enqueue a run for each step of a run that has rows in quarantine: the job's own body, on those rows alone.

    Each row leaves the quarantine in the transaction that does it.

    Returns:
        The ids of the new runs; none where nothing is in quarantine.
    """
    known = await ledger.find(run_id)
    if known is None:
        return []
    payload = decode_payload(known.payload.encode(), accept_pickle=False)
    steps = sorted({row.step for row in await ledger.quarantined(run_id=run_id, limit=_MANY)})
    made = []
    for step in steps:
        again = payload._replace(in_ledger=False, pickled=False, tries=None, only=(run_id, step), enqueued_ms=now_ms())
        new_id = f"{run_id}:retry:{step}:{again.enqueued_ms}"
        await client.command(client.store.enqueue(new_id, again.to_json(), queue=known.queue))
        made.append(new_id)
    return made
