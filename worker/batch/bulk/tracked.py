"""Bulk operations that have to be awaited; see `worker.awaiting`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from worker.awaiting import TrackedCall, TrackedCalls
from worker.batch.bulk.operations import Bulk


class TrackedBulk(Bulk):
    """Bulk operations of a batch or a job, each of which has to be awaited.

    Args:
        calls: The registry that the calls are added to.
        name: The name by which the job calls them, such as "batch.bulk".
        settle: Called before an operation opens a transaction of its own; None inside a batch.
        args: The arguments of `Bulk`.
    """

    def __init__(
        self, calls: TrackedCalls, name: str, settle: Callable[[], Awaitable[None]] | None, *args: Any
    ) -> None:
        super().__init__(*args)
        self._calls = calls
        self._name = name
        self._settle = settle

    def insert(self, *args: Any, **options: Any) -> TrackedCall[int]:
        """See `Bulk.insert`."""
        return self._track("insert", super().insert(*args, **options))

    def update(self, *args: Any, **options: Any) -> TrackedCall[int]:
        """See `Bulk.update`."""
        return self._track("update", super().update(*args, **options))

    def upsert(self, *args: Any, **options: Any) -> TrackedCall[int]:
        """See `Bulk.upsert`."""
        return self._track("upsert", super().upsert(*args, **options))

    def delete(self, *args: Any, **options: Any) -> TrackedCall[int]:
        """See `Bulk.delete`."""
        return self._track("delete", super().delete(*args, **options))

    def _track(self, verb: str, call: Coroutine[Any, Any, int]) -> TrackedCall[int]:
        return self._calls.track(f"{self._name}.{verb}", self._settled(call) if self._settle is not None else call)

    async def _settled(self, call: Coroutine[Any, Any, int]) -> int:
        try:
            if self._settle is not None:
                await self._settle()
        except BaseException:
            call.close()
            raise
        return await call
