"""The newest entries of `worker:events` in memory: read once, then only what was added."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from worker.errors import InvalidPayload
from worker.queue import keys
from worker.queue.client import Client
from worker.queue.decoding import read_json
from worker.web.event_hub import LAST_PLACE, Message, decode_event, order_of

_KEPT = 10_000
_PAGE = 1_000


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

    async def read(self) -> None:
        """Read the events that were added since the last time."""
        async with self._reading:
            redis = self._client.redis
            newest = await self._client.command(redis.xrevrange(keys.EVENTS, count=1))
            if not newest or order_of(newest[0][0].decode()) < order_of(self._last):  # Redis was emptied
                self._events.clear()
                self._last = "0-0"
            while order_of(self._last) < LAST_PLACE:
                page = await self._client.command(redis.xrange(keys.EVENTS, min=f"({self._last}", count=_PAGE))
                if not page:
                    return
                self._events.extend(decode_event(name, raw) for name, raw in page)
                self._last = page[-1][0].decode()

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
            if one.run_id == run_id or (one.fields.get("event") == "ordered" and targets & _read_targets(one))
        ]

    async def list_all(self) -> list[Message]:
        """Return all events, newest first."""
        await self.read()
        return list(reversed(self._events))


def _read_targets(message: Message) -> set[str]:
    try:
        found: Any = read_json(message.fields.get("targets", "[]").encode(), "the targets")
    except InvalidPayload:
        return set()
    return {one for one in found if isinstance(one, str)} if isinstance(found, list) else set()
