"""The stack of a suspended task, through everything that it awaits; `Task.get_stack` has the outermost frame only."""

from __future__ import annotations

import asyncio
import gc
import inspect
import traceback
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

#: The attributes of a suspended coroutine, generator or asynchronous generator: what it awaits, its frame, its code.
_AWAITS = ("cr_await", "gi_yieldfrom", "ag_await")
_FRAMES = ("cr_frame", "gi_frame", "ag_frame")
_CODES = ("cr_code", "gi_code", "ag_code")


def format_task_stack(task: asyncio.Task[Any], *, inside: Callable[..., Any] | None = None) -> str:
    """Return the stack of a suspended task, outermost frame first, in the format of a traceback.

    Args:
        task: the task.
        inside: leave out the frames around this function, if it is on the stack.
    """
    awaitables = list(iterate_awaited(task))
    if inside is not None:
        code = inspect.unwrap(inside).__code__
        places = [place for place, one in enumerate(awaitables) if get_code(one) is code]
        awaitables = awaitables[places[0] :] if places else awaitables
    frames: list[FrameType] = [frame for frame in (_get(one, _FRAMES) for one in awaitables) if frame is not None]
    lines = ((frame, frame.f_lineno) for frame in frames)
    return "".join(traceback.StackSummary.extract(lines).format()).rstrip()


def iterate_awaited(task: asyncio.Task[Any]) -> Iterator[Any]:
    """Yield the coroutine of a suspended task and the chain of its awaitables; then the same for the tasks it waits
    for."""
    awaitable: Any = task.get_coro()
    while awaitable is not None:
        yield awaitable
        awaitable = _get_awaited(awaitable)
    waiter: Any = getattr(task, "_fut_waiter", None)
    for one in (waiter, *getattr(waiter, "_children", ())):  # a task, or the tasks of a gather
        if isinstance(one, asyncio.Task) and not one.done():
            yield from iterate_awaited(one)


def get_code(awaitable: Any) -> CodeType | None:
    """Return the code of a coroutine or generator; None for another awaitable."""
    code: CodeType | None = _get(awaitable, _CODES)
    return code


def _get_awaited(awaitable: Any) -> Any:
    if any(hasattr(awaitable, name) for name in _AWAITS):
        return _get(awaitable, _AWAITS)
    # `__anext__()` of an asynchronous generator and the like do not expose the generator that they advance.
    found = gc.get_referents(awaitable)
    return next((one for one in found if inspect.iscoroutine(one) or inspect.isasyncgen(one)), None)


def _get(awaitable: Any, names: tuple[str, ...]) -> Any:
    return next((getattr(awaitable, name) for name in names if hasattr(awaitable, name)), None)
