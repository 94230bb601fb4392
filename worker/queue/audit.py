"""Records who has ordered what: in the stream `worker:orders`, and as an event `ordered` in `worker:events`.

An order and its record are one transaction in Redis. The hash `worker:ordered` has the orders that are in force and
recorded; an order that a worker finds in force and not there was given with `redis-cli`, and the worker records it.
Workers copy the stream to the ledger.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, cast

from redis.asyncio import Redis
from redis.asyncio.client import Pipeline
from redis.exceptions import NoPermissionError, RedisError

from worker.errors import LonghaulError, format_error
from worker.queue import keys
from worker.queue.run_reader import RunReader

logger = logging.getLogger("longhaul.queue")

Order = Literal[
    "enqueue",
    "pause",
    "resume",
    "pace",
    "limit",
    "rate",
    "cancel",
    "drain",
    "cron_run",
    "retry",
    "dead_letters_retry",
    "dead_letters_delete",
    "quarantine_retry",
    "quarantine_discard",
    "outbox_retry",
    "outbox_delete",
]
ORDERED = "ordered"
REDIS_CLI = "redis-cli"
_KEPT = 10_000
_EVENTS_KEPT = 10_000
_MOST_TARGETS = 100

_ordered_by: ContextVar[str] = ContextVar("ordered_by", default="client")


@contextmanager
def ordering_as(name: str) -> Iterator[None]:
    """Give the orders of a block a name, e.g. `cli:ada@host` or `web:deploy`."""
    token = _ordered_by.set(name)
    try:
        yield
    finally:
        _ordered_by.reset(token)


def make_mark(order: Order, name: str) -> str:
    """Return the field of `worker:ordered` for an order that is in force: resume ends pause, and a limit of None ends
    the limit."""
    return f"{order} {name}"


def add_record(
    pipeline: Pipeline, order: Order, targets: Sequence[Any], details: Mapping[str, Any] | None = None
) -> None:
    """Add the record of an order to a pipeline.

    Args:
        pipeline: a transaction, with the order itself.
        order: the order.
        targets: names to which it applies; the first hundred are recorded, with the number of the others.
        details: what else belongs to it, e.g. the pace.
    """
    rest = len(targets) - _MOST_TARGETS
    more = {**(details or {}), **({"more_targets": rest} if rest > 0 else {})}
    fields: dict[Any, Any] = {
        "order": order,
        "by": _ordered_by.get(),
        "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "targets": _encode(list(targets[:_MOST_TARGETS])),
        "details": _encode(more),
    }
    pipeline.xadd(keys.ORDERS, fields, maxlen=_KEPT, approximate=True)
    pipeline.xadd(keys.EVENTS, {"event": ORDERED, **fields}, maxlen=_EVENTS_KEPT, approximate=True)


def _encode(value: Any) -> str:
    return json.dumps(value, default=str)


async def give_order(
    reader: RunReader,
    order: Order,
    targets: Sequence[str],
    add: Callable[[Pipeline], Any],
    *,
    mark: Order | None = None,
    value: str | None = "1",
    details: Mapping[str, Any] | None = None,
) -> Any:
    """Send an order and its record in one transaction. Return the answer of the order.

    Args:
        reader: connection to Redis.
        order: the order.
        targets: names to which it applies.
        add: adds the order to a pipeline, as one command.
        mark: the order that is in force from now on, or ends; None for an order that leaves nothing.
        value: the value of the mark; None if the order ends it.
        details: what else belongs to the order.
    """
    pipeline = reader.redis.pipeline(transaction=True)
    add(pipeline)
    if mark is not None and value is None:
        pipeline.hdel(keys.ORDERED, *(make_mark(mark, name) for name in targets))
    elif mark is not None and value is not None:
        fields: dict[Any, Any] = {make_mark(mark, name): value for name in targets}
        pipeline.hset(keys.ORDERED, mapping=fields)
    add_record(pipeline, order, targets, details)
    answers = await reader.command(pipeline.execute())
    return answers[0]


async def record_order(
    redis: Redis, order: Order, targets: Sequence[Any], details: Mapping[str, Any] | None = None
) -> None:
    """Record an order that is not one command of Redis; nothing if it applies to no target.

    The order was carried out. If it cannot be recorded, that is logged, since an error would let the caller repeat it.
    A role without the right to record orders is no operator's: nothing is logged.
    """
    if not targets:
        return
    try:
        pipeline = redis.pipeline(transaction=True)
        add_record(pipeline, order, targets, details)
        await pipeline.execute()
    except NoPermissionError:
        pass
    except (RedisError, OSError, LonghaulError) as error:
        words = "order not recorded order=%s by=%s targets=%s error=%s"
        logger.warning(words, order, _ordered_by.get(), list(targets[:3]), format_error(error))


async def set_marks(redis: Redis, order: Order, names: Sequence[str]) -> None:
    """Mark an order as recorded, before a script puts it into force."""
    fields: dict[Any, Any] = {make_mark(order, name): "1" for name in names}
    await cast(Awaitable[int], redis.hset(keys.ORDERED, mapping=fields))


async def remove_marks(redis: Redis, order: Order, names: Sequence[str]) -> None:
    """Remove the marks of names to which an order does not apply."""
    if names:
        await cast(Awaitable[int], redis.hdel(keys.ORDERED, *(make_mark(order, name) for name in names)))
