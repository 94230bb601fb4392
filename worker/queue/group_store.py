"""Groups in Redis: the hash `worker:group:<id>`, and results of runs that will not begin."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import cast

from redis.asyncio import Redis

from worker.queue import keys

KEEP_GROUP_MS = 30 * 86_400_000


class GroupStore:
    """Reads and writes groups. The scripts that end a run count its members: see enqueue_next.lua.

    Args:
        redis: connection that returns bytes.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def create(self, group_id: str, size: int, *, complete_when: str, callback: Mapping[str, str] | None) -> None:
        """Write the hash of a group, before its first member is enqueued. May be repeated.

        Args:
            group_id: id of the group.
            size: number of its members.
            complete_when: `all_succeeded` or `all_finished`.
            callback: fields of its callback; None without one.
        """
        key = keys.GROUP + group_id
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.hset(key, mapping={"size": str(size), "complete_when": complete_when, **(callback or {})})
        pipeline.pexpire(key, KEEP_GROUP_MS)
        await pipeline.execute()

    async def progress(self, group_id: str) -> tuple[int, int, bool] | None:
        """Return the size of a group, how many members are complete, and whether all are; None if it does not exist."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.hmget(keys.GROUP + group_id, ["size", "called"])
        pipeline.hlen(keys.GROUP + group_id + ":done")
        [[size, called], done] = await pipeline.execute()
        return None if size is None else (int(size), int(size) if called else done, called is not None)

    async def needs_success(self, group_id: str) -> bool:
        """Return whether the callback waits for a failed member. Return False if the group does not exist."""
        complete_when = await cast(Awaitable[bytes | None], self._redis.hget(keys.GROUP + group_id, "complete_when"))
        return complete_when == b"all_succeeded"

    async def publish_skipped(self, run_ids: Sequence[str], result: bytes, keep_ms: int) -> None:
        """Write a result for runs that will not begin because the preceding run failed, for clients that wait for them.

        A retry of the preceding run deletes these results.

        Args:
            run_ids: ids of the runs.
            result: the result.
            keep_ms: its lifetime in ms.
        """
        if not run_ids:
            return
        pipeline = self._redis.pipeline(transaction=True)
        for run_id in run_ids:
            pipeline.set(keys.RESULT + run_id, result, px=keep_ms, nx=True)
        await pipeline.execute()
