"""Jobs as arq has them, with arq's context and `WorkerSettings`: `worker run --arq jobs.mail.WorkerSettings`."""

from __future__ import annotations

from typing import Any

from arq import Retry, cron


async def startup(ctx: dict[Any, Any]) -> None:
    """Open the resources that all jobs share."""
    ctx["sent"] = []


async def send_welcome(ctx: dict[Any, Any], address: str) -> str:
    """Send a mail; the first attempt finds the server busy."""
    if ctx["job_try"] == 1:
        raise Retry(defer=0.1)
    ctx["sent"].append(address)
    return f"welcome, {address}"


async def send_digest(ctx: dict[Any, Any]) -> None:
    """Send the collected mails."""
    ctx["sent"].clear()


class WorkerSettings:
    """Settings of arq's worker, and of its stand-in."""

    functions = (send_welcome,)
    cron_jobs = (cron(send_digest, hour=6, minute=30),)
    on_startup = startup
    queue_name = "mail"
    max_tries = 3
