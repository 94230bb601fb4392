"""How `worker/batch/loop_exit.py` classifies each exit from an `async for`, on any Python; it has no dependencies."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

_FILE = Path(__file__).parents[2] / "worker" / "batch" / "loop_exit.py"
_SPEC = importlib.util.spec_from_file_location("loop_exit", _FILE)
assert _SPEC is not None
assert _SPEC.loader is not None
loop_exit = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(loop_exit)


class Three:
    """A walk of three batches."""

    was_left_by_break: bool | None = None

    def __init__(self) -> None:
        self.number = 0

    def __aiter__(self) -> Any:
        return loop_exit.LoopIterator(self, sys._getframe(1).f_code)

    async def __anext__(self) -> int:
        await asyncio.sleep(0)
        self.number += 1
        if self.number > 3:
            raise StopAsyncIteration
        return self.number


async def by_break(walk: Three) -> None:
    async for number in walk:
        if number == 2:
            break


async def by_return(walk: Three) -> int:
    async for number in walk:
        if number == 2:
            return await asyncio.sleep(0, number)
    return 0


async def by_break_in_blocks(walk: Three) -> None:
    async for number in walk:
        async with asyncio.Lock():
            try:
                if number == 2:
                    break
            finally:
                await asyncio.sleep(0)


async def by_break_in_a_nested_loop(walk: Three) -> None:
    async for number in walk:
        for _ in range(3):
            break
        else:
            continue
        if number == 2:
            break


async def by_error(walk: Three) -> None:
    async for number in walk:
        if number == 2:
            raise ValueError(number)


async def by_caught_error(walk: Three) -> None:
    try:
        async for number in walk:
            if number == 2:
                raise ValueError(number)
    except ValueError:
        await asyncio.sleep(0)


async def by_error_of_a_call(walk: Three) -> None:
    async for number in walk:
        if number == 2:
            await asyncio.wait_for(asyncio.Event().wait(), 0.001)


async def by_error_and_return(walk: Three) -> None:
    try:
        async for number in walk:
            if number == 2:
                raise ValueError(number)
    finally:
        return  # noqa: B012


async def main() -> None:
    found: dict[str, bool | None] = {}
    for way in (
        by_break,
        by_return,
        by_break_in_blocks,
        by_break_in_a_nested_loop,
        by_error,
        by_caught_error,
        by_error_of_a_call,
        by_error_and_return,
    ):
        walk = Three()
        with contextlib.suppress(TimeoutError, ValueError):
            await way(walk)
        found[way.__name__] = walk.was_left_by_break
    print(json.dumps({"version": sys.version_info[:2], "shows_exit": loop_exit.shows_exit, "found": found}))


if __name__ == "__main__":
    asyncio.run(main())
