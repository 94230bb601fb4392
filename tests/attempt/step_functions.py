"""Functions and jobs for durable steps, and what they record. `tests/attempt/conftest.py` clears the records."""

from __future__ import annotations

from typing import Any

from worker import JobContext, job

calls: list[Any] = []


async def note(value: Any) -> Any:
    """Record the call."""
    calls.append(value)
    return value


def make_job(*names: str, fails: bool = False) -> Any:
    """Make a job that runs steps of these names, and then may fail."""

    async def steps(ctx: JobContext) -> list[Any]:
        found = [await ctx.step(name, note, name) for name in names]
        if fails:
            raise ValueError("after its steps")
        return found

    return job(name="steps")(steps)
