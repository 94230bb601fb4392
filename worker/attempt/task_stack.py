"""Where a suspended task stands: what it awaits, whether a cancellation has come to it, its stack for the log."""

from __future__ import annotations

import asyncio
import gc
import inspect
import traceback
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

#: The attribute that holds what a suspended coroutine, generator or asynchronous generator awaits.
_AWAITS = ("cr_await", "gi_yieldfrom", "ag_await")
_FRAMES = ("cr_frame", "gi_frame", "ag_frame")
_CODES = ("cr_code", "gi_code", "ag_code")


def holds_cancellation(task: asyncio.Task[Any]) -> bool:
    """Tell whether a cancellation has come to a suspended task, and is still being dealt with.

    What stands in an `except` or a `finally` clause, or in the exit of an `async with`, holds the exception that it
    was entered for: the garbage collector knows it as one of the coroutine's references.
    """
    return any(isinstance(value, asyncio.CancelledError) for link in _chain(task) for value in gc.get_referents(link))


def awaits(task: asyncio.Task[Any], name: str) -> bool:
    """Tell whether a function of that name is among those that a suspended task awaits."""
    return any(code is not None and code.co_name == name for code in map(_code, _chain(task)))


def stack_of(task: asyncio.Task[Any], *, inside: Callable[..., Any] | None = None) -> str:
    """Return the stack of a suspended task, outermost first, as tracebacks are written.

    Args:
        task: `Task.get_stack` knows its outermost coroutine alone, and not what that awaits.
        inside: leave out what is around this function, where it is found.
    """
    links = list(_chain(task))
    if inside is not None:
        code = inspect.unwrap(inside).__code__
        places = [place for place, link in enumerate(links) if _code(link) is code]
        links = links[places[0] :] if places else links
    frames = [frame for frame in map(_frame, links) if frame is not None]
    lines = ((frame, frame.f_lineno) for frame in frames)
    return "".join(traceback.StackSummary.extract(lines).format()).rstrip()


def _chain(task: asyncio.Task[Any]) -> Iterator[Any]:
    """Yield what a suspended task awaits, outermost first, and then what the tasks do that it waits for."""
    link: Any = task.get_coro()
    while link is not None:
        yield link
        link = _awaited(link)
    waiter: Any = getattr(task, "_fut_waiter", None)
    for one in (waiter, *getattr(waiter, "_children", ())):  # a task, or those of a gather
        if isinstance(one, asyncio.Task) and not one.done():
            yield from _chain(one)


def _awaited(link: Any) -> Any:
    for name in _AWAITS:
        if hasattr(link, name):
            return getattr(link, name)
    # `__anext__()` of an asynchronous generator and the like, which do not tell what they are the step of.
    return next((one for one in gc.get_referents(link) if inspect.iscoroutine(one) or inspect.isasyncgen(one)), None)


def _code(link: Any) -> CodeType | None:
    return next((getattr(link, name) for name in _CODES if hasattr(link, name)), None)


def _frame(link: Any) -> FrameType | None:
    return next((getattr(link, name) for name in _FRAMES if hasattr(link, name)), None)
