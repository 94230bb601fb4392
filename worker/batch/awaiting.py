"""Calls that have to be awaited: a forgotten `await` is an error of its batch or job."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar

from worker.batch.bulk.operations import Bulk
from worker.errors import UsageError

T = TypeVar("T")


class TrackedCall(Coroutine[Any, Any, T]):
    """A coroutine that records whether it was awaited.

    Args:
        name: The call, for the error.
        coroutine: The call itself.
    """

    def __init__(self, name: str, coroutine: Coroutine[Any, Any, T]) -> None:
        self.name = name
        self.was_awaited = False
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, T]:
        self.was_awaited = True
        return self._coroutine.__await__()

    def send(self, value: Any) -> Any:
        self.was_awaited = True
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        self.was_awaited = True
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()


class TrackedCalls:
    """The calls of one batch, or of one attempt."""

    def __init__(self) -> None:
        self._calls: list[TrackedCall[Any]] = []

    def track(self, name: str, coroutine: Coroutine[Any, Any, T]) -> TrackedCall[T]:
        """Return a call that has to be awaited."""
        call = TrackedCall(name, coroutine)
        self._calls.append(call)
        return call

    def ensure_awaited(self) -> None:
        """Raise `UsageError` if a call was never awaited."""
        forgotten = [call for call in self._calls if not call.was_awaited]
        self._calls.clear()
        for call in forgotten:
            call.close()
        if forgotten:
            raise UsageError(f"{forgotten[0].name}() was called without `await`, so it did nothing: await it")


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
