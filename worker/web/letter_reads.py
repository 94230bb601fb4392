"""Reads of dead letters, of quarantined rows and of orders."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable
from typing import Any, cast

from worker.ledger.records import QuarantinedRow
from worker.queue import keys
from worker.queue.dead_letters import DeadLetter, DeadLetterFilter, dead_letters
from worker.web.backend import Backend
from worker.web.bodies import DeadLettersQuery, QuarantineQuery
from worker.web.fields import Page, PageQuery, make_cursor, read_cursor
from worker.web.operations import Call
from worker.web.problems import not_found
from worker.web.views import DeadLetterDetail, DeadLettersView, DeadLetterView, OrderView, QuarantinedRowView

#: Time and letters after which a request looks no further: its page may be shorter than its limit, and has a cursor.
_LONGEST_LOOK_SECONDS = 2.0
_MOST_LOOKED_AT = 50_000
_AT_ONCE = 200
#: A search reads all letters, so it is shared for longer than a page of them.
_SEARCH_SECONDS = 5.0


async def list_dead_letters(call: Call) -> DeadLettersView:
    """Return a page of the dead letters, newest first. A page may have fewer letters than its limit and a cursor."""
    query: DeadLettersQuery = call.query
    key = ("dead letters", query.job, query.search, query.cursor, query.limit)
    seconds = None if query.job is None and query.search is None else _SEARCH_SECONDS
    return await call.backend.reads.get(key, lambda: _list_dead_letters(call.backend, query), seconds=seconds)


async def _list_dead_letters(backend: Backend, query: DeadLettersQuery) -> DeadLettersView:
    """Read letters by `worker:dead:at` in steps, and keep none that is not shown: tracebacks are long."""
    place = read_cursor(query.cursor, float, str)
    rank = 0 if place is None else await _find_rank(backend, place[0], place[1])
    total = await backend.client.command(backend.client.redis.zcard(keys.DEAD_AT))
    end, until = rank + _MOST_LOOKED_AT, time.monotonic() + _LONGEST_LOOK_SECONDS
    found: list[DeadLetterView] = []
    cursor: str | None = None
    count = min(_AT_ONCE, max(query.limit, 1) + 1) if query.job is None and query.search is None else _AT_ONCE
    while cursor is None:
        names, raws = await _read_letters(backend, rank, count)
        for (name, at), raw in zip(names, raws, strict=True):
            rank += 1
            run_id = name.decode(errors="replace")
            letter = None if raw is None else DeadLetter.read(run_id, raw)
            if letter is not None and _is_chosen(letter, query):
                found.append(_describe_letter(letter))
            if len(found) == query.limit:
                cursor = make_cursor(float(at), run_id)
                break
        else:
            if len(names) < count:
                break
            if rank >= end or time.monotonic() > until:
                cursor = make_cursor(float(at), run_id)
    return DeadLettersView(items=found, next_cursor=cursor, looked_at=rank, total=max(rank, total))


def _is_chosen(letter: DeadLetter, query: DeadLettersQuery) -> bool:
    if query.job is not None and letter.job != query.job:
        return False
    if query.search is None:
        return True
    arguments = json.dumps(letter.arguments, ensure_ascii=False, default=str)
    return query.search.lower() in f"{letter.id} {letter.job} {letter.error} {arguments}".lower()


async def _find_rank(backend: Backend, at: float, run_id: str) -> int:
    """Return the place behind a letter, also if it has been deleted since."""
    redis = backend.client.redis
    rank = await backend.client.command(cast(Awaitable[int | None], redis.zrevrank(keys.DEAD_AT, run_id)))
    if rank is not None:
        return int(rank) + 1
    count: int = await backend.client.command(redis.zcount(keys.DEAD_AT, f"({at!r}", "+inf"))
    return count


async def _read_letters(
    backend: Backend, first: int, count: int
) -> tuple[list[tuple[bytes, float]], list[bytes | None]]:
    redis = backend.client.redis
    names: list[tuple[bytes, float]] = await backend.client.command(
        redis.zrange(keys.DEAD_AT, first, first + count - 1, desc=True, withscores=True)
    )
    if not names:
        return [], []
    ids: list[Any] = [name for name, _ in names]
    raws = await backend.client.command(cast(Awaitable[list[bytes | None]], redis.hmget(keys.DEAD, ids)))
    return names, raws


def _describe_letter(letter: DeadLetter) -> DeadLetterView:
    return DeadLetterView(
        id=letter.id,
        job=letter.job,
        queue=letter.queue,
        attempts=letter.attempts,
        at=letter.at,
        error=letter.error,
        in_ledger=letter.in_ledger,
    )


async def show_dead_letter(call: Call) -> DeadLetterDetail:
    """Return one dead letter, of the ledger or of Redis."""
    backend, run_id = call.backend, call.path["run_id"]
    chosen = DeadLetterFilter(ids=(run_id,))
    letters = await backend.client.command(dead_letters(backend.client.redis, backend.ledger, chosen))
    if not letters:
        raise not_found(f"run {run_id!r} is not dead")
    [letter] = letters[:1]
    values = _describe_letter(letter).model_dump()
    return DeadLetterDetail(**values, arguments=letter.arguments, traceback=letter.traceback)


async def list_orders(call: Call) -> Page[OrderView]:
    """Return a page of the orders that the ledger has, newest first. Workers copy new ones every few seconds."""
    query: PageQuery = call.query
    place = read_cursor(query.cursor, int)
    before = None if place is None else min(max(place[0], 0), 2**63 - 1)
    orders = await call.backend.reads.get(
        ("orders", before, query.limit),
        lambda: call.backend.ledger.list_orders(before=before, limit=query.limit),
    )
    last = orders[-1].number if len(orders) == query.limit else None
    return Page[OrderView](
        items=[
            OrderView(
                id=one.id,
                at=one.at,
                order=one.order,
                ordered_by=one.ordered_by,
                targets=one.targets,
                details=one.details,
            )
            for one in orders
        ],
        next_cursor=None if last is None else make_cursor(last),
    )


async def list_quarantine(call: Call) -> Page[QuarantinedRowView]:
    """Return a page of the quarantined rows, newest first."""
    query: QuarantineQuery = call.query
    place = read_cursor(query.cursor, int)
    before = None if place is None else min(max(place[0], 0), 2**63 - 1)
    options: dict[str, Any] = {"job": query.job, "search": query.search, "before": before, "limit": query.limit}
    rows = await call.backend.reads.get(
        ("quarantine", query.run, *options.values()),
        lambda: call.backend.ledger.quarantine.list_rows(run_id=query.run, **options),
    )
    last = rows[-1].id if len(rows) == query.limit else None
    return Page[QuarantinedRowView](
        items=[_describe_row(row) for row in rows], next_cursor=None if last is None else make_cursor(last)
    )


async def show_quarantined_row(call: Call) -> QuarantinedRowView:
    """Return one quarantined row."""
    rows = await call.backend.ledger.quarantine.list_rows(row_ids=[call.path["row_id"]])
    if not rows:
        raise not_found(f"no row {call.path['row_id']} is in quarantine")
    return _describe_row(rows[0])


def _describe_row(row: QuarantinedRow) -> QuarantinedRowView:
    return QuarantinedRowView(
        id=row.id,
        run_id=row.run_id,
        job=row.job,
        step=row.step,
        key=row.key,
        row=row.row,
        error=row.error,
        traceback=row.traceback,
        created_at=row.created_at,
    )
