"""The seed's jobs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select

from jobs.models import Log, Post, User, UserDigest
from jobs.users import (
    bulk_create_users,
    complex_operation,
    deactivate_dormant_users,
    deactivate_users,
    delete_old_posts,
    process_all_users,
    raw_insert,
    raw_query,
    stream_large_table,
    stream_partitioned,
)
from worker.testing.runner import JobRunner
from worker.types import Database

NOW = datetime.now(UTC)


def users(count: int) -> list[dict[str, Any]]:
    return [{"name": f"user {number}", "email": f"{number}@example.org"} for number in range(1, count + 1)]


async def test_users_are_created_in_bulk_with_their_defaults(tables: Database, run_job: JobRunner) -> None:
    assert await run_job(bulk_create_users, users(5_000)) == 5_000
    async with tables.session() as session:
        assert await session.scalar(select(func.count()).where(User.is_active, User.score == 0)) == 5_000


async def test_many_users_are_deactivated_by_id(tables: Database, run_job: JobRunner) -> None:
    await run_job(bulk_create_users, users(100))
    beyond_the_limit_of_parameters = [*range(1, 51), *range(1_000, 40_000)]
    assert await run_job(deactivate_users, user_ids=beyond_the_limit_of_parameters) == 50


async def test_dormant_users_are_deactivated(tables: Database, run_job: JobRunner) -> None:
    seen = [NOW - timedelta(days=days) for days in (10, 100, 400)]
    async with tables.transaction() as session:
        session.add_all(User(name="x", email=str(when), last_seen_at=when) for when in seen)
    assert await run_job(deactivate_dormant_users) == 1
    assert await run_job(deactivate_dormant_users, days=50) == 1


async def test_old_posts_are_deleted(tables: Database, run_job: JobRunner) -> None:
    await add_posts(tables)
    assert await run_job(delete_old_posts, before=NOW - timedelta(days=1, hours=1)) == 2
    async with tables.session() as session:
        assert await session.scalar(select(func.count()).select_from(Post)) == 2


async def add_posts(database: Database) -> None:
    """Add two users; the first has three posts, the second one; one post a day."""
    async with database.transaction() as session:
        first, second = User(name="one", email="1"), User(name="two", email="2")
        session.add_all([first, second])
        for day, author in enumerate([first, first, first, second]):
            session.add(Post(title=f"post {day}", author=author, created_at=NOW - timedelta(days=day)))


async def test_every_user_is_processed_once(tables: Database, run_job: JobRunner) -> None:
    await run_job(bulk_create_users, users(2_500))
    assert await run_job(process_all_users, points=3) == 2_500
    async with tables.session() as session:
        assert (await session.scalars(select(User.score).distinct())).all() == [3]


async def test_a_large_table_is_streamed(tables: Database, run_job: JobRunner) -> None:
    await run_job(bulk_create_users, users(6_000))
    assert await run_job(stream_large_table) == 6_000
    async with tables.session() as session:
        assert await session.scalar(select(func.count(Log.message.distinct()))) == 6_000


async def test_posts_are_counted_in_partitions(tables: Database, run_job: JobRunner) -> None:
    await add_posts(tables)
    assert await run_job(stream_partitioned) == 2
    async with tables.session() as session:
        found = await session.execute(select(UserDigest.posts).order_by(UserDigest.user_id))
        assert found.scalars().all() == [3, 1]


async def test_a_savepoint_alone_is_rolled_back(tables: Database, run_job: JobRunner) -> None:
    assert await run_job(complex_operation, name="a", email="a@b") is not None
    assert await run_job(complex_operation, name="b", email="a@b") is None
    async with tables.session() as session:
        messages = (await session.scalars(select(Log.message).order_by(Log.id))).all()
        assert messages == ["a@b was added", "a@b is taken"]
        assert await session.scalar(select(func.count()).select_from(User)) == 1


async def test_raw_sql(tables: Database, run_job: JobRunner) -> None:
    await run_job(bulk_create_users, users(2))
    assert await run_job(raw_query) == [(1, "user 1"), (2, "user 2")]
    await run_job(raw_insert, message="hello")
    async with tables.session() as session:
        assert (await session.scalars(select(Log.message))).all() == ["hello"]
