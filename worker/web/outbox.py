"""The outbox: runs that were enqueued in transactions, and wait for a relay or were refused."""

from __future__ import annotations

import asyncio
from typing import Any

from worker.web.backend import Backend
from worker.web.bodies import OutboxBody, OutboxQuery
from worker.web.effects import CountView
from worker.web.fields import make_cursor, read_cursor
from worker.web.operations import Call
from worker.web.views import OutboxRowView, OutboxView


async def list_outbox(call: Call) -> OutboxView:
    """Return a page of the outbox, newest first, and how many rows wait and were refused."""
    query: OutboxQuery = call.query
    place = read_cursor(query.cursor, int)
    before = None if place is None else min(max(place[0], 0), 2**63 - 1)
    options: dict[str, Any] = {"refused": query.refused == "true", "search": query.search, "before": before}
    options |= {"limit": query.limit}
    return await call.backend.reads.get(("outbox", *options.values()), lambda: _list_outbox(call.backend, options))


async def _list_outbox(backend: Backend, options: dict[str, Any]) -> OutboxView:
    outbox = backend.ledger.outbox
    state, rows = await asyncio.gather(outbox.read_state(), outbox.list_rows(**options))
    items = [
        OutboxRowView(
            id=row.id,
            run_id=row.run_id,
            job=row.job,
            queue=row.queue,
            priority=row.priority,
            due_at=row.due_at,
            created_at=row.created_at,
            problem=row.problem,
        )
        for row in rows
    ]
    return OutboxView(
        waiting=state.waiting,
        oldest_seconds=state.oldest_seconds,
        refused=state.refused,
        items=items,
        next_cursor=make_cursor(rows[-1].id) if len(rows) == options["limit"] else None,
    )


async def retry_outbox(call: Call) -> CountView:
    """Let relays try refused rows again."""
    body: OutboxBody = call.body
    done = await call.backend.client.retry_outbox(*body.rows or ())
    call.backend.reads.forget()
    return CountView(changed=len(done))


async def delete_outbox(call: Call) -> CountView:
    """Delete refused rows."""
    body: OutboxBody = call.body
    done = await call.backend.client.delete_outbox(*body.rows or ())
    call.backend.reads.forget()
    return CountView(changed=len(done))
