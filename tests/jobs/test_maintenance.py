"""The ready-made jobs of the deployment."""

from __future__ import annotations

import importlib
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select

import jobs.maintenance
from jobs.maintenance import archive_old_posts, purge_old_posts, recompute_digests
from jobs.models import ArchivedPost, Post, User, UserDigest
from worker import discover
from worker.testing.runner import JobRunner
from worker.types import Database


def test_no_ready_made_job_fires_unless_the_deployment_says_when(monkeypatch: pytest.MonkeyPatch) -> None:
    own = {name for name, one in discover(["jobs"]).items() if one.function.__module__ == "jobs.maintenance"}
    assert len(own) == 10
    assert not [name for name in own if getattr(jobs.maintenance, name).schedule]
    monkeypatch.setenv("MAINTENANCE_CRON", "0 3 * * *")
    try:
        nightly = importlib.reload(jobs.maintenance)
        assert nightly.purge_old_posts.schedule
        assert not nightly.export_places.schedule
    finally:
        monkeypatch.delenv("MAINTENANCE_CRON")
        importlib.reload(jobs.maintenance)


async def test_old_posts_are_archived_purged_and_counted(tables: Database, run_job: JobRunner) -> None:
    now = datetime.now(UTC)
    async with tables.transaction() as session:
        author = User(name="one", email="1")
        session.add_all(Post(title=str(days), author=author, created_at=now - timedelta(days=days)) for days in AGES)
    assert await run_job(purge_old_posts) == 1
    assert await run_job(archive_old_posts) == 2
    assert await run_job(recompute_digests) == 1
    async with tables.session() as session:
        assert sorted(await session.scalars(select(ArchivedPost.title))) == ["400", "800"]
        assert (await session.execute(select(UserDigest.posts))).scalar_one() == 2


AGES = [1, 100, 400, 800, 1_200]
