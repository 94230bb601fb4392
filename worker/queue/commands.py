"""Giving orders: what `worker pause`, `resume`, `pace`, `cancel` and the keys of `worker top` do to Redis.

`orders.py` is the other side: how a worker reads them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import cast

from worker.queue import keys
from worker.queue.client import Client


async def pause(client: Client, targets: Sequence[str]) -> None:
    """Pause runs, jobs, queues, or `*` for all.

    Raises, as all of these do:
        ServerUnavailable: Redis does not answer.
    """
    await client.command(cast(Awaitable[int], client.redis.sadd(keys.PAUSED, *targets)))


async def resume(client: Client, targets: Sequence[str]) -> int:
    """Take pauses back. Returns how many there were."""
    return int(await client.command(cast(Awaitable[int], client.redis.srem(keys.PAUSED, *targets))))


async def pace(client: Client, targets: Sequence[str], rows_per_second: float | None) -> None:
    """Give walks another pace; None takes the order back."""
    if rows_per_second is None:
        operation = client.redis.hdel(keys.PACE, *targets)
    else:
        operation = client.redis.hset(keys.PACE, mapping=dict.fromkeys(targets, f"{rows_per_second:g}"))
    await client.command(cast(Awaitable[int], operation))


async def cancel(client: Client, run_ids: Sequence[str], *, queue: str | None = None) -> list[str]:
    """Cancel runs.

    Args:
        client: for Redis.
        run_ids: the runs.
        queue: theirs, where it is not that of the settings.

    Returns:
        Those that neither wait nor run.
    """
    return [run_id for run_id in run_ids if not await client.run(run_id, queue=queue).cancel()]


async def drain(client: Client, worker: str) -> None:
    """Let one worker end as SIGTERM does."""
    await client.command(cast(Awaitable[int], client.redis.sadd(keys.DRAINED, worker)))
