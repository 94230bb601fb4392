"""One try of one job, from its first line to the commit of its last batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from worker.attempt.context import JobContext
from worker.job.definition import Job
from worker.job.propagation import current_job


async def perform(job: Job[..., Any], ctx: JobContext, arguments: Mapping[str, Any]) -> Any:
    """Run a job in its context, and settle what its loops have left open; enter it again where that cures an error.

    The end of the run, in ledger and queue, is the caller's.

    Args:
        job: what to run.
        ctx: its context, closed by the caller.
        arguments: by name, in the signature's types (see `Job.decode_arguments`).

    Returns:
        What the function returned.

    Raises:
        BaseException: what the function raised; its open batch is rolled back.
    """
    named = current_job.set(job.name)
    try:
        while True:
            try:
                result = await job.function(ctx, **arguments)
                await ctx.succeed()
            except BaseException as error:
                await ctx.fail()
                if not await ctx.retry_batch(error):
                    raise
            else:
                return result
    finally:
        current_job.reset(named)
