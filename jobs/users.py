"""The jobs of the seed document, under their own names, in a form for large tables; docs/patterns.md explains why."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select, text
from sqlalchemy.exc import IntegrityError

from jobs.models import Log, Post, User, UserDigest
from worker import JobContext, job


@job(cron="0 3 * * *", timezone="Europe/London")
async def deactivate_dormant_users(ctx: JobContext, days: int = 365) -> int:
    """Switch off accounts that nobody has used for `days` days."""
    dormant = select(User).where(User.is_active, User.last_seen_at < datetime.now(UTC) - timedelta(days=days))
    async for batch in ctx.chunks(dormant, size=1_000):
        for user in batch:
            user.is_active = False  # committed with the checkpoint, its row locked until then
    return ctx.rows_done


@job
async def bulk_create_users(ctx: JobContext, users: list[dict[str, Any]]) -> int:
    """Insert users in one transaction: COPY for many, insertmanyvalues for few, without a limit of parameters."""
    return await ctx.bulk.insert(User, users)


@job
async def deactivate_users(ctx: JobContext, user_ids: list[int]) -> int:
    """Switch off the accounts with these ids, in one statement with one array, whatever their number."""
    return await ctx.bulk.update(User, [{"id": user_id, "is_active": False} for user_id in user_ids])


@job
async def delete_old_posts(ctx: JobContext, before: datetime) -> int:
    """Delete posts in ranges of their key, and commit each range: no lock is held for an hour."""
    return await ctx.sweep(delete(Post).where(Post.created_at < before), size=10_000)


@job
async def process_all_users(ctx: JobContext, points: int = 1) -> int:
    """Give each user points: by key instead of OFFSET, with locked rows, each batch once."""
    async for batch in ctx.chunks(select(User), size=1_000):
        for user in batch:
            user.score += points
    return ctx.rows_done


@job
async def stream_large_table(ctx: JobContext) -> int:
    """Log a line for each active user, from one snapshot, without holding all of them in memory."""
    users = select(User.id, User.name).where(User.is_active).order_by(User.id)
    async for partition in ctx.stream(users, size=5_000):
        await partition.bulk.insert(Log, [{"message": f"user {user}: {name}"} for user, name in partition])
    return ctx.rows_done


@job
async def stream_partitioned(ctx: JobContext) -> int:
    """Count each user's posts: one server-side cursor reads, another connection commits each partition."""
    counts = select(Post.author_id, func.count()).group_by(Post.author_id).order_by(Post.author_id)
    async for partition in ctx.stream(counts, size=5_000):
        await partition.bulk.upsert(UserDigest, [{"user_id": user, "posts": posts} for user, posts in partition])
    return ctx.rows_done


@job
async def complex_operation(ctx: JobContext, name: str, email: str) -> int | None:
    """Add a user if the address is free, and log both outcomes: only the savepoint is rolled back."""
    user = User(name=name, email=email)
    async with ctx.transaction() as session:
        try:
            async with ctx.savepoint(session):
                session.add(user)
                await session.flush()
        except IntegrityError:
            session.add(Log(message=f"{email} is taken"))
            return None
        session.add(Log(message=f"{email} was added"))
    return user.id


@job
async def raw_query(ctx: JobContext, active: bool = True) -> list[tuple[int, str]]:
    """Read with SQL as text: named parameters, columns by name."""
    async with ctx.session() as session:
        rows = await session.execute(
            text("SELECT id, name FROM users WHERE is_active = :active ORDER BY id"), {"active": active}
        )
        return [(row.id, row.name) for row in rows]


@job
async def raw_insert(ctx: JobContext, message: str) -> None:
    """Write with SQL as text; the scope commits once, at its end."""
    async with ctx.transaction() as session:
        await session.execute(text("INSERT INTO logs (message) VALUES (:message)"), {"message": message})
