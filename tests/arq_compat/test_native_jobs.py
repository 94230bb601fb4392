"""Longhaul's own jobs in the worker of the facade, beside arq's."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from arq.connections import ArqRedis
from arq.worker import JobExecutionFailed
from sqlalchemy import select

from tests.arq_compat.functions import MakeWorker, add, put, seen
from tests.faults.conftest import effects, fill_targets
from tests.models import Target
from worker import JobContext, Settings, job
from worker.arq_compat import Worker
from worker.db.engine import Database
from worker.errors import RegistrationError
from worker.queue import keys


@job
async def greet(ctx: JobContext, name: str, at: datetime) -> str:
    """Greet."""
    async with ctx.session():
        return f"{name} {at:%Y}"


@job(max_attempts=1)
async def refuse(ctx: JobContext) -> None:
    """Fail."""
    raise ValueError("no")


async def test_our_own_jobs_run_beside_arqs_with_hooks_and_counts(
    arq: ArqRedis, make: MakeWorker, settings: Settings, database: Database
) -> None:
    async def note(ctx: dict[Any, Any]) -> None:
        seen.append(ctx["job_id"])

    sent = await put(arq, "greet", "Ada", at=datetime(2026, 1, 1, tzinfo=UTC), _job_id="ours")
    bad, theirs = await put(arq, "refuse", _job_id="bad"), await put(arq, "add", 1, _job_id="theirs")
    worker = make([greet, refuse, add], settings=settings, on_job_start=note, after_job_end=note)
    await worker.main()
    assert await sent.result(timeout=120) == "Ada 2026"
    with pytest.raises(JobExecutionFailed, match="ValueError: no"):
        await bad.result(timeout=120)
    assert await theirs.result(timeout=120) == 3
    assert (worker.jobs_complete, worker.jobs_failed) == (2, 1)
    assert sorted(seen) == ["bad", "bad", "ours", "ours", "theirs", "theirs", "theirs"]


@job(once=True)
async def migrate(ctx: JobContext) -> int:
    """Change each row once, by two hands."""
    async for batch in ctx.chunks(select(Target), size=10, parallel=2):
        for target in batch:
            target.touched = True
        seen.append(str(ctx.is_helper))
        await asyncio.sleep(0.01)
    return ctx.rows_done


@job(verify=select(Target.id).where(~Target.touched))
async def leave_rows(ctx: JobContext) -> None:
    """Leave rows undone."""


async def test_jobs_of_ours_keep_their_rules_for_verify_once_and_parallel(
    arq: ArqRedis, make: MakeWorker, settings: Settings, database: Database
) -> None:
    await fill_targets(database, 200)
    left = await put(arq, "leave_rows", _job_id="left")
    worker = make([migrate, leave_rows], settings=settings)
    await worker.main()
    with pytest.raises(JobExecutionFailed, match="incomplete: 200 rows are left undone: 1, 2"):
        await left.result(timeout=120)
    assert (worker.jobs_complete, worker.jobs_failed) == (0, 1)
    misnamed = await put(arq, "migrate", _job_id="another")
    first = await put(arq, "migrate", _job_id="migrate")
    await make([migrate], settings=settings).main()
    with pytest.raises(JobExecutionFailed, match="migrate is a data migration: enqueue it with its name as id"):
        await misnamed.result(timeout=120)
    assert await first.result(timeout=120) == 200
    assert set(seen) == {"True", "False"}
    await arq.delete(keys.RESULT + "migrate")
    again = await put(arq, "migrate", _job_id="migrate")
    await make([migrate], settings=settings).main()
    assert await again.result(timeout=120) == 200
    assert await effects(database) == {1: 200}


async def test_a_job_of_ours_without_a_database_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("DATABASE_URL", "LONGHAUL_DATABASE__URL", "LONGHAUL_SETTINGS"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RegistrationError, match="needs PostgreSQL: set DATABASE_URL"):
        Worker([greet, add], handle_signals=False)
