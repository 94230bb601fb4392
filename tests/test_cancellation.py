"""Operations that must complete, and tasks that must end, under cancellation."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from worker.cancellation import cancel_and_wait, run_to_completion


async def test_run_to_completion_lets_its_operation_end_before_it_raises_the_cancellation() -> None:
    begun, go_on, done = asyncio.Event(), asyncio.Event(), []

    async def operate() -> None:
        begun.set()
        await go_on.wait()
        done.append(True)

    task = asyncio.create_task(run_to_completion(operate()))
    await begun.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [True]


async def test_cancel_and_wait_repeats_a_cancellation_that_is_swallowed() -> None:
    swallowed = []

    async def stubborn() -> None:
        while len(swallowed) < 2:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed.append(True)

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await asyncio.wait_for(cancel_and_wait(task), 30)
    assert task.done()
    assert len(swallowed) == 2


async def test_cancel_and_wait_keeps_the_error_of_the_task_to_itself() -> None:
    async def fail() -> None:
        raise ValueError("no")

    task = asyncio.create_task(fail())
    await cancel_and_wait(task)
    assert task.done()


async def test_run_to_completion_cancels_an_operation_that_takes_too_long_after_a_cancellation() -> None:
    ended = []

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(True)

    task = asyncio.create_task(run_to_completion(hang(), seconds=0.01))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    assert ended == [True]


async def test_run_to_completion_raises_the_error_of_its_operation() -> None:
    async def fail() -> Any:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await run_to_completion(fail())
