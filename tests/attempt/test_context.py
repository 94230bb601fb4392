"""`JobContext`: its public names."""

from __future__ import annotations

import threading

from tests.support.contexts import MakeContext
from worker import JobContext, job
from worker.testing.runner import JobRunner

#: All that a job may use. Each new name is an addition to the public interface: document it.
NAMES = {
    "attempt", "bulk", "chunks", "database", "enqueued_at", "headers", "is_helper", "job", "lines", "log", "progress",
    "redis", "rows_done", "run_id", "savepoint", "session", "settings", "sleep", "sleep_until", "step", "stream",
    "sweep", "transaction", "walk",
}  # fmt: skip


async def test_context_shows_only_what_a_job_may_use(context: MakeContext) -> None:
    ctx = context()
    assert {name for name in dir(ctx) if not name.startswith("_")} == NAMES
    assert [name for name in NAMES if name not in vars(ctx) and not getattr(JobContext, name).__doc__] == []


@job
def plain(ctx: JobContext, number: int) -> tuple[int, bool]:
    """Run in a thread."""
    return number, threading.current_thread() is threading.main_thread()


@job
async def outer(ctx: JobContext) -> tuple[int, bool]:
    """Call another job in this one's context."""
    return await plain(ctx, 3)


async def test_a_job_called_in_a_job_runs_where_it_would_by_itself(run_job: JobRunner) -> None:
    assert await run_job(outer) == (3, False)
