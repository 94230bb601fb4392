"""Detects whether a job exited an `async for` by `break` or `return`, or by an exception.

Only the `async for` holds the iterator, and drops it when the job exits the loop. Python does not pass the reason to
the iterator. The current instruction of the job's frame shows it: CPython 3.11 to 3.13 drop the iterator with POP_TOP
after `break` and `return`, and at the instruction that raised after an exception. Everything else counts as an
exception: a generator around the loop, a compiled module, an interpreter that is not in `_KNOWN_VERSIONS`. The batch is
then rolled back, and the run fails with an error that names the remedy, so that half of a batch is never committed.

`async with ctx.chunks(...) as batches` does not need this: its `__aexit__` gets the exception, on every Python.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import AsyncIterator
from types import CodeType
from typing import Any, Generic, Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_KNOWN_VERSIONS = frozenset({(3, 11), (3, 12), (3, 13)})
#: Whether this interpreter shows how an `async for` was exited. If False, every exit counts as an exception.
shows_exit = sys.implementation.name == "cpython" and sys.version_info[:2] in _KNOWN_VERSIONS


class LeavableWalk(Protocol[T_co]):
    """A walk that hands out batches."""

    #: Set when the job drops the iterator: True after `break` or `return`, False after an exception, None if the
    #: interpreter does not show it.
    was_left_by_break: bool | None

    async def __anext__(self) -> T_co:
        """Return the next batch."""


class LoopIterator(AsyncIterator[T], Generic[T]):
    """The object that an `async for` over a walk holds.

    Args:
        walk: The walk.
        function: The code of the function that contains the `async for`.
    """

    def __init__(self, walk: LeavableWalk[T], function: CodeType) -> None:
        self._walk = walk
        self._function = function

    def __anext__(self) -> Any:
        return self._walk.__anext__()

    def __del__(self) -> None:
        try:
            frame = sys._getframe(1)
        except ValueError:
            return  # the interpreter ends
        if not shows_exit or frame.f_code is not self._function or frame.f_lasti < 0:
            self._walk.was_left_by_break = None
        else:
            instruction = dis.opname[frame.f_code.co_code[frame.f_lasti]]
            self._walk.was_left_by_break = instruction == "POP_TOP"


def swallowed_error_message(place: str | None) -> str:
    """Return the error for a job that exited a loop by an exception, caught it, and continued.

    Args:
        place: Kind, step and batch of the loop.
    """
    if not shows_exit:
        return (
            f"the job exited the loop {place} before its end. This Python ({sys.version.split()[0]}) does not show "
            f"whether that was a `break` or an exception, so the batch was rolled back. Write `async with "
            f"ctx.chunks(...) as batches: async for batch in batches`, and `break` is committed"
        )
    return (
        f"an exception ended the loop {place}, but the job continued. The batch was rolled back, and the rows "
        f"after it were not walked. Catch the exception inside the loop's body (and `break` to end the walk there), "
        f"or let it pass. If this was a `break` inside a generator or a compiled module, write `async with "
        f"ctx.chunks(...) as batches: async for batch in batches`"
    )
