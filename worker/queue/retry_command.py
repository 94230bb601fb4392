"""`worker retry`: an ended run, or a dead letter, goes back into the queue; and so do rows in quarantine."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from typing import cast

from redis.asyncio import Redis

from worker.ledger import Ledger
from worker.queue import keys
from worker.queue.client import Client
from worker.queue.dead_letters import DeadLetter
from worker.queue.payload import decode_payload, now_ms, without_expiry
from worker.queue.store import QueueStore

logger = logging.getLogger("longhaul.retry")

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
    # What an operator wants again is not too late, though it may have died of that.
    spec = await ledger.retry(run_id, from_start=from_start, revise=without_expiry)
    if spec is not None:
        return await store.put_again(run_id, spec.payload.encode(), queue=spec.queue, letter=False)
    raw = await cast(Awaitable[bytes | None], redis.hget(keys.DEAD, run_id))
    letter = None if raw is None else DeadLetter.read(run_id, raw)
    if letter is None or letter.in_ledger:
        return False
    try:
        payload = without_expiry(letter.payload.decode()).encode()
    except UnicodeDecodeError:
        payload = letter.payload  # a pickle, or nothing that one can read
    return await store.put_again(run_id, payload, queue=letter.queue, letter=True)


async def retry_ordered(redis: Redis, ledger: Ledger, run_id: str) -> None:
    """Obey an order of `worker:retry`; every worker may come with it.

    The order goes when the run is in its queue, so that it outlives a worker that dies in between.
    """
    done = await retry_run(redis, ledger, run_id, from_start=False)
    if done:
        logger.info("run %s: in the queue again, as ordered (worker:retry)", run_id)
    elif await cast(Awaitable[int], redis.srem(keys.RETRIED, run_id)):
        logger.warning("worker:retry has %s, which is no ended run and no dead letter", run_id)


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
    steps = sorted({row.step for row in await ledger.quarantine.list_rows(run_id=run_id, limit=_MANY)})
    made = []
    for step in steps:
        again = payload._replace(
            in_ledger=False,
            pickled=False,
            tries=None,
            only=(run_id, step),
            enqueued_ms=now_ms(),
            until_ms=0,
            deadline_ms=0,
            then=(),
            group=None,
        )
        new_id = f"{run_id}:retry:{step}:{again.enqueued_ms}"
        await client.command(client.store.enqueue(new_id, again.to_json(), queue=known.queue))
        made.append(new_id)
    return made
