"""Calls that have to be awaited: a forgotten `await` is an error of its batch or job."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from typing import Any, TypeVar

from worker.batch.bulk import Bulk
from worker.errors import UsageError

T = TypeVar("T")


class TrackedCall(Coroutine[Any, Any, T]):
    """A coroutine that notes whether it was awaited.

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
    """The bulk operations of a batch, each of which has to be awaited."""

    def __init__(self, calls: TrackedCalls, *args: Any) -> None:
        super().__init__(*args)
        self._calls = calls

    def insert(self, *args: Any, **options: Any) -> TrackedCall[int]:
        """See `Bulk.insert`."""
        return self._calls.track("batch.bulk.insert", super().insert(*args, **options))

    def update(self, *args: Any, **options: Any) -> TrackedCall[int]:
        """See `Bulk.update`."""
        return self._calls.track("batch.bulk.update", super().update(*args, **options))

    def upsert(self, *args: Any, **options: Any) -> TrackedCall[int]:
        """See `Bulk.upsert`."""
        return self._calls.track("batch.bulk.upsert", super().upsert(*args, **options))

    def delete(self, *args: Any, **options: Any) -> TrackedCall[int]:
        """See `Bulk.delete`."""
        return self._calls.track("batch.bulk.delete", super().delete(*args, **options))
