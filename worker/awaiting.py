"""Calls that have to be awaited: inside of a job, a forgotten `await` is an error of its batch or job.

Outside of a job, Python's own warning applies: "coroutine ... was never awaited".
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Coroutine, Generator, Iterable
from contextvars import ContextVar
from typing import Any, Generic, TypeVar

from worker.errors import UsageError

T = TypeVar("T")
C = TypeVar("C", bound=type[Any])


class TrackedCall(Coroutine[Any, Any, T], Generic[T]):
    """A coroutine that tells its registry when it is awaited.

    Args:
        name: The call, for the error.
        coroutine: The call itself.
        forget: Called with this object when it is awaited.
    """

    def __init__(
        self, name: str, coroutine: Coroutine[Any, Any, T], forget: Callable[[TrackedCall[Any]], None]
    ) -> None:
        self.name = name
        self._coroutine = coroutine
        self._forget = forget

    def __await__(self) -> Generator[Any, Any, T]:
        self._forget(self)
        return self._coroutine.__await__()

    def send(self, value: Any) -> Any:
        self._forget(self)
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        self._forget(self)
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._forget(self)
        self._coroutine.close()


class TrackedCalls:
    """The calls of one attempt that were made and not awaited yet."""

    def __init__(self) -> None:
        self._pending: dict[TrackedCall[Any], int] = {}
        self._last = 0

    @property
    def mark(self) -> int:
        """The number of the last call, to check only later ones."""
        return self._last

    @property
    def are_pending(self) -> bool:
        """Whether a call was made and not awaited yet."""
        return bool(self._pending)

    def track(self, name: str, coroutine: Coroutine[Any, Any, T]) -> TrackedCall[T]:
        """Return a call that has to be awaited."""
        call = TrackedCall(name, coroutine, self._forget)
        self._last += 1
        self._pending[call] = self._last
        return call

    def _forget(self, call: TrackedCall[Any]) -> None:
        self._pending.pop(call, None)

    def clear(self) -> None:
        """Close all pending calls: their attempt has failed."""
        for call in list(self._pending):
            call.close()

    async def check_awaited(self, since: int = 0) -> None:
        """Raise `UsageError` if a call was never awaited.

        Args:
            since: A mark; calls before it are not checked.
        """
        if not self._pending:
            return
        await asyncio.sleep(0)  # a call in a task that was created just now begins here
        forgotten = [call for call, number in self._pending.items() if number > since]
        for call in forgotten:
            call.close()
        if forgotten:
            raise UsageError(f"{forgotten[0].name}() was called without `await`, so it did nothing: await it")


#: The registry of the attempt that runs in this context; None outside of a job.
tracked_calls: ContextVar[TrackedCalls | None] = ContextVar("tracked_calls", default=None)


def track_awaits(prefix: str, inherited: Iterable[str] = ()) -> Callable[[C], C]:
    """Return a class decorator that tracks the calls of all public coroutine methods.

    Args:
        prefix: The name by which a job calls an object of the class, for the error.
        inherited: Methods of its base classes that are tracked as well.
    """

    def decorate(cls: C) -> C:
        for name in inherited:
            setattr(cls, name, _tracked(f"{prefix}.{name}", getattr(cls, name)))
        for name, member in list(vars(cls).items()):
            if not name.startswith("_") and inspect.iscoroutinefunction(member):
                setattr(cls, name, _tracked(f"{prefix}.{name}", member))
        return cls

    return decorate


def _tracked(name: str, method: Callable[..., Coroutine[Any, Any, Any]]) -> Callable[..., Coroutine[Any, Any, Any]]:
    @functools.wraps(method)
    def call(*arguments: Any, **options: Any) -> Coroutine[Any, Any, Any]:
        calls = tracked_calls.get()
        coroutine = method(*arguments, **options)
        return coroutine if calls is None else calls.track(name, coroutine)

    # For `unittest.mock`, it remains a coroutine function.
    if hasattr(inspect, "markcoroutinefunction"):
        return inspect.markcoroutinefunction(call)  # type: ignore[no-any-return]
    call._is_coroutine = asyncio.coroutines._is_coroutine  # type: ignore[attr-defined]
    return call
