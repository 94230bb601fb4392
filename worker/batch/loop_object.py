"""The object that a job walks by one `async for`: a walk of one run, or of several hands."""

from __future__ import annotations

import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Generic, NoReturn, TypeVar

from worker.batch.loop_exit import LoopIterator
from worker.errors import UsageError

T = TypeVar("T")


class LoopObject(ABC, Generic[T]):
    """The object that a job walks by one `async for`.

    Attributes:
        was_left_by_break: See `LeavableWalk`.
    """

    def __init__(self) -> None:
        self._iterator: weakref.ref[object] | None = None
        self._is_finished = False
        self.was_left_by_break: bool | None = None

    @property
    @abstractmethod
    def kind(self) -> str:
        """The kind of the loop."""

    @abstractmethod
    async def __anext__(self) -> T:
        """Return the next batch."""

    def __aiter__(self) -> AsyncIterator[T]:
        if self._iterator is not None:
            raise UsageError(f"{self.kind}: a loop object is for one `async for`; call ctx.{self.kind} again")
        iterator = LoopIterator[T](self, sys._getframe(1).f_code)
        self._iterator = weakref.ref(iterator)
        return iterator

    @property
    def is_left(self) -> bool:
        """Whether the job has exited this loop while its last batch is still open."""
        return self._iterator is not None and self._iterator() is None and not self._is_finished

    @property
    def in_progress(self) -> bool:
        """Whether the job is inside this loop: an `async for` holds the iterator, and drops it on exit."""
        return not self._is_finished and self._iterator is not None and self._iterator() is not None

    def __iter__(self) -> NoReturn:
        raise UsageError(f"ctx.{self.kind}(...) is walked by `async for`, not by `for`")

    def __await__(self) -> NoReturn:
        raise UsageError(f"ctx.{self.kind}(...) is walked by `async for`, not awaited")
