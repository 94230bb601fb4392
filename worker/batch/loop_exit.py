"""How a job has left an `async for`: by `break` or `return`, or by an exception.

The iterator is held by the `async for` alone, and dropped when the job leaves it. Python says nothing of the reason;
the instruction at which the job's frame stands does: `break` and `return` drop the iterator with POP_TOP, in CPython
3.11 to 3.13, while an exception drops it at the instruction that raised. Anything else (another Python, a generator
around the loop) counts as an exception: the batch is rolled back, and the run says so, rather than commit half of it.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import AsyncIterator
from types import CodeType
from typing import Any, Generic, NoReturn, Protocol, TypeVar

from worker.errors import UsageError

T = TypeVar("T")

_DELIBERATE = frozenset({"POP_TOP", "POP_ITER"})


T_co = TypeVar("T_co", covariant=True)


class LeavableWalk(Protocol[T_co]):
    """A loop that hands out batches."""

    left_deliberately: bool | None

    async def next_batch(self) -> T_co | None:
        """Return the next batch; None at the end."""


class LoopIterator(AsyncIterator[T], Generic[T]):
    """What an `async for` over a loop holds.

    Args:
        walk: the loop.
        home: code of the function that the `async for` stands in.
    """

    def __init__(self, walk: LeavableWalk[T], home: CodeType) -> None:
        self._walk = walk
        self._home = home

    async def __anext__(self) -> T:
        batch = await self._walk.next_batch()
        if batch is None:
            raise StopAsyncIteration
        return batch

    def __del__(self) -> None:
        try:
            frame = sys._getframe(1)
        except ValueError:
            return  # the interpreter ends
        instruction = dis.opname[frame.f_code.co_code[frame.f_lasti]] if frame.f_lasti >= 0 else ""
        self._walk.left_deliberately = frame.f_code is self._home and instruction in _DELIBERATE


class OnlyAsyncFor:
    """Says what a loop is for where it is used otherwise."""

    kind: str

    def __iter__(self) -> NoReturn:
        raise UsageError(f"ctx.{self.kind}(...) is walked by `async for`, not by `for`")

    def __await__(self) -> NoReturn:
        raise UsageError(f"ctx.{self.kind}(...) is walked by `async for`, not awaited")


def caller(depth: int = 2) -> Any:
    """Return the code of the function that called the caller."""
    return sys._getframe(depth).f_code
