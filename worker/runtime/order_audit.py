"""Finds orders that were given with `redis-cli`, records them, and copies the records of all orders to the ledger."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Awaitable, Collection, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, cast

from redis.asyncio import Redis

from worker.errors import InvalidPayload
from worker.ledger import Ledger
from worker.ledger.records import OrderRecord
from worker.queue import keys
from worker.queue.audit import REDIS_CLI, Order, make_mark
from worker.queue.decoding import read_json, read_time
from worker.queue.run import decode_fields
from worker.queue.scripts import script

_MOST_CHANGES = 1_000
_AT_ONCE = 100
_COPY_SECONDS = 5.0
_PAGE = 500
_KEPT = 10_000
#: The order that puts a name into each key, and the one that takes it out; None if taking it out is no order.
_ORDERS: Mapping[str, tuple[Order, Order | None]] = {
    keys.PAUSED: ("pause", "resume"),
    keys.CANCELLED: ("cancel", None),
    keys.PACE: ("pace", "pace"),
    keys.LIMITS: ("limit", "limit"),
    keys.RATES: ("rate", "rate"),
    keys.DRAINED: ("drain", None),
    keys.RETRIED: ("retry", None),
}
_NUMBERS: Mapping[str, str] = {keys.PACE: "rows_per_second", keys.LIMITS: "running", keys.RATES: "runs_per_second"}


class _Change(NamedTuple):
    key: str
    name: str
    value: str  # empty for a name that is no longer in the key


class OrderChanges:
    """The changes of the operators' keys that a worker has seen, until they are checked."""

    def __init__(self) -> None:
        self._changes: deque[_Change] = deque(maxlen=_MOST_CHANGES)

    def compare(self, key: str, before: Collection[str], now: Collection[str]) -> None:
        """Note the names that were added to a key, or removed."""
        if before == now:
            return
        old, new = frozenset(before), frozenset(now)
        self._changes.extend(_Change(key, name, "1") for name in new - old)
        self._changes.extend(_Change(key, name, "") for name in old - new)

    def compare_numbers(self, key: str, before: Mapping[str, float], now: Mapping[str, float]) -> None:
        """Note the names whose number has changed."""
        if before != now:
            changed = [name for name, value in now.items() if before.get(name) != value]
            self._changes.extend(_Change(key, name, f"{now[name]:.12g}") for name in changed)
            self._changes.extend(_Change(key, name, "") for name in before.keys() - now.keys())

    def take(self) -> list[_Change]:
        """Return the oldest changes, and forget them."""
        return [self._changes.popleft() for _ in range(min(_AT_ONCE, len(self._changes)))]


class OrderAudit:
    """A periodic task of the worker.

    Args:
        redis: the connection of the worker.
        ledger: the ledger.
        changes: the changes that the worker has seen.
    """

    def __init__(self, redis: Redis, ledger: Ledger, changes: OrderChanges) -> None:
        self._redis = redis
        self._ledger = ledger
        self._changes = changes
        self._script = redis.register_script(script("note_orders"))
        self._copied = "0-0"
        self._copied_at = -_COPY_SECONDS
        self._limits: dict[str, dict[str, float]] = {keys.LIMITS: {}, keys.RATES: {}}

    async def look(self) -> None:
        """Record what was ordered with `redis-cli`, and copy new records to the ledger every few seconds."""
        if time.monotonic() - self._copied_at >= _COPY_SECONDS:
            await self._read_limits()
            await self._record()
            await self._copy()
            self._copied_at = time.monotonic()
        else:
            await self._record()

    async def _record(self) -> None:
        while changes := self._changes.take():
            at = datetime.now(UTC).isoformat(timespec="milliseconds")
            arguments: list[Any] = [REDIS_CLI, at, _KEPT, keys.RUN, keys.JOB]
            for change in changes:
                given, ended = _ORDERS[change.key]
                number = _NUMBERS.get(change.key)
                details = {} if number is None else {number: float(change.value) if change.value else None}
                order = given if change.value else ended or ""
                texts = (json.dumps([change.name]), json.dumps(details))
                mark = make_mark(given, change.name)
                arguments += (order, change.key, change.name, mark, change.value, *texts)
            await self._script(keys=[keys.ORDERED, keys.ORDERS, keys.EVENTS], args=arguments)

    async def _read_limits(self) -> None:
        for key, before in self._limits.items():
            raw = await cast(Awaitable[dict[bytes, bytes]], self._redis.hgetall(key))
            now = {}
            for name, text in decode_fields(raw).items():
                try:
                    now[name] = float(text)
                except ValueError:
                    continue
            self._changes.compare_numbers(key, before, now)
            self._limits[key] = now

    async def _copy(self) -> None:
        while page := await self._redis.xrange(keys.ORDERS, min=f"({self._copied}", count=_PAGE):
            records = [record for name, raw in page if (record := read_record(name.decode(), raw)) is not None]
            if records:
                await self._ledger.add_orders(records)
            self._copied = page[-1][0].decode()


def read_record(entry_id: str, raw: Mapping[bytes, bytes]) -> OrderRecord | None:
    """Return a record of the stream; None for an entry that Longhaul has not written."""
    fields = decode_fields(raw)
    at = read_time(fields.get("at"))
    try:
        targets = read_json(fields.get("targets", "[]"), "the targets")
        details = read_json(fields.get("details", "{}"), "the details")
    except InvalidPayload:
        return None
    order, by = fields.get("order"), fields.get("by")
    if at is None or not order or not by:
        return None
    return OrderRecord(entry_id, at, order, by, targets, details)
