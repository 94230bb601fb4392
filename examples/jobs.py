"""The job of the examples."""

from __future__ import annotations

from worker import JobContext, job


@job
async def send_welcome_mail(ctx: JobContext, user_id: int, name: str) -> str:
    """Send a mail to a new user; here, return its text."""
    return f"Welcome, {name} (no. {user_id})"
