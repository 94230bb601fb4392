"""The newest entries of `worker:events` in memory: read once, then only what was added."""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import UTC, datetime, timedelta
from typing import Any

from worker.errors import InvalidPayload
from worker.queue import keys
from worker.queue.client import Client
from worker.queue.decoding import read_json
from worker.web.event_hub import LAST_PLACE, Message, decode_event, order_of
from worker.web.fields import read_moment

_KEPT = 10_000
_PAGE = 1_000
#: A run without a loop that succeeds within this time is one of very many.
_BRIEF = timedelta(seconds=1)


class EventLog:
    """Remembers the events that the stream has, for requests that look for those of one run.

    Args:
        client: the client of the queue.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._events: deque[Message] = deque(maxlen=_KEPT)
        self._last = "0-0"
        self._reading = asyncio.Lock()
        self._starts: dict[str, Message] = {}  # of runs of which nothing else is known
        self._brief: dict[str, None] = {}  # ids of the events of short runs, in their order

    async def read(self) -> None:
        """Read the events that were added since the last time."""
        async with self._reading:
            redis = self._client.redis
            newest = await self._client.command(redis.xrevrange(keys.EVENTS, count=1))
            if not newest or order_of(newest[0][0].decode()) < order_of(self._last):  # Redis was emptied
                self._events.clear()
                self._starts.clear()
                self._brief.clear()
                self._last = "0-0"
            while order_of(self._last) < LAST_PLACE:
                page = await self._client.command(redis.xrange(keys.EVENTS, min=f"({self._last}", count=_PAGE))
                if not page:
                    return
                for name, raw in page:
                    self._add(decode_event(name, raw))
                self._last = page[-1][0].decode()

    def _add(self, event: Message) -> None:
        self._events.append(event)
        if not event.run_id:
            return
        start = self._starts.pop(event.run_id, None)
        if event.fields.get("event") == "started":
            self._starts[event.run_id] = event
        elif start is not None and _is_brief(start, event):
            self._brief.update({start.id: None, event.id: None})
        for known in (self._starts, self._brief):  # no more than there are events
            if len(known) > _KEPT:
                del known[next(iter(known))]

    async def list_events(self, names: tuple[str, ...]) -> list[Message]:
        """Return the events of a run and the orders that apply to it, oldest first.

        Args:
            names: the id of the run, and the names of its job and its queue, which orders may name instead.
        """
        await self.read()
        run_id, targets = names[0], {*names, keys.ALL}
        return [
            one
            for one in self._events
            if one.run_id == run_id or (one.fields.get("event") == "ordered" and targets & read_targets(one))
        ]

    def is_brief(self, event: Message) -> bool:
        """Return whether an event is the start or the end of a run without a loop that succeeded within a second.

        A start of which nothing else is known counts for its first second.
        """
        if event.id in self._brief:
            return True
        at = read_moment(event.fields.get("at")) if self._starts.get(event.run_id) is event else None
        return at is not None and timedelta() <= datetime.now(UTC) - at < _BRIEF

    async def list_all(self) -> list[Message]:
        """Return all events, newest first."""
        await self.read()
        return list(reversed(self._events))


def _is_brief(start: Message, end: Message) -> bool:
    fields = end.fields
    began, ended = read_moment(start.fields.get("at")), read_moment(fields.get("at"))
    is_short = began is not None and ended is not None and ended - began < _BRIEF
    return is_short and fields.get("event") == "succeeded" and "rows" not in fields


def read_targets(message: Message) -> set[str]:
    """Return the names that an order is for."""
    try:
        found: Any = read_json(message.fields.get("targets", "[]").encode(), "the targets")
    except InvalidPayload:
        return set()
    return {one for one in found if isinstance(one, str)} if isinstance(found, list) else set()
