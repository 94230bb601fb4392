"""The state of PostgreSQL and Redis: queues and outbox, read in the background, and whether both answer.

A scrape reads nothing: it takes what the last read has found. The reads use connections of their own, one to each
server, because those of the worker may all be in use by jobs.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, TypeVar

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError
from sqlalchemy.exc import SQLAlchemyError

from worker.db.engine import Database
from worker.db.migrate import check_migrated
from worker.errors import DatabaseNotMigrated, LonghaulError, format_error
from worker.ledger.outbox import OutboxState, read_outbox_state
from worker.observe.metrics import definitions as names
from worker.observe.metrics.snapshot import Snapshot
from worker.observe.mirror_entry import escape
from worker.queue import keys
from worker.queue.connection import connection_pool
from worker.runtime.supervision import end_tasks
from worker.settings import Settings

logger = logging.getLogger("longhaul.metrics")

T = TypeVar("T")

#: Age up to which requests share an answer to whether the servers are ready.
_SHARED_SECONDS = 1.0
#: Longest wait for one read, in seconds. It keeps running, and the next read waits for it.
_READ_SECONDS = 10.0
#: Share of the time that reads may take: if they are slow, they become rarer.
_READ_SHARE = 0.1
_MOST_OUTBOX_ROWS = 100_000
#: An older due time, in ms since 1970, means "at once": `ZADD arq:queue 0 <id>`.
_EARLIEST_DUE_MS = 1_000_000_000_000
#: Reads after which an old value is no longer shown.
_KEPT_READS = 3
_CLOSE_SECONDS = 2.0


class SharedRead(Generic[T]):
    """One read of a server. It runs once at a time, and requests share its result for a moment.

    Args:
        read: reads.
        shared_seconds: age up to which a result is shared.
    """

    def __init__(self, read: Callable[[], Awaitable[T]], *, shared_seconds: float = 0.0) -> None:
        self._read = read
        self._shared_seconds = shared_seconds
        self._task: asyncio.Task[T] | None = None
        self._ended_at = -math.inf

    async def get(self, seconds: float) -> T:
        """Return the result, waiting no longer than that.

        Raises:
            TimeoutError: there is none in time.
            Exception: the error of the read.
        """
        task = self._task
        if task is None or (task.done() and time.monotonic() - self._ended_at > self._shared_seconds):
            self._task = task = asyncio.ensure_future(self._run())
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # it may have no reader left
        done, _ = await asyncio.wait({task}, timeout=seconds)
        if not done:
            raise TimeoutError
        return task.result()

    async def _run(self) -> T:
        try:
            return await self._read()
        finally:
            self._ended_at = time.monotonic()

    async def close(self) -> None:
        """End the read."""
        if self._task is not None:
            await end_tasks([self._task], seconds=_CLOSE_SECONDS)


class Servers:
    """Reads the state of the servers. Opens nothing before the first read.

    Args:
        settings: the settings.
        queues: the queues to read.
        name: name of the process, for `application_name`.
        has_ledger: whether to read PostgreSQL.

    Attributes:
        has_read: set after the first read of both servers.
    """

    def __init__(self, settings: Settings, queues: Sequence[str], name: str, *, has_ledger: bool = True) -> None:
        small = settings.database.model_copy(update={"pool_size": 1, "max_overflow": 1, "replica_url": None})
        self._rules = settings.metrics
        self._queues = list(dict.fromkeys(queues))[: names.MOST_QUEUES]
        self._database = Database(settings.model_copy(update={"database": small}), f"{name}:metrics")
        self._redis = Redis(connection_pool=connection_pool(settings))
        self._found: dict[str, tuple[float, Snapshot]] = {}
        self._up: dict[str, bool] = {}
        self._reads = {"postgresql": SharedRead(self._read_outbox), "redis": SharedRead(self._read_queues)}
        self._answers: dict[str, SharedRead[Any]] = {
            "postgresql": SharedRead(self._check_ledger, shared_seconds=_SHARED_SECONDS),
            "redis": SharedRead(self._ping, shared_seconds=_SHARED_SECONDS),
        }
        if not has_ledger:
            del self._reads["postgresql"], self._answers["postgresql"]
        self._kept_seconds = 0.0
        self.has_read = asyncio.Event()

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            began = time.monotonic()
            await self.read()
            self.has_read.set()
            pause = max(self._rules.refresh_seconds, (time.monotonic() - began) / _READ_SHARE)
            self._kept_seconds = _KEPT_READS * (pause + _READ_SECONDS)
            await asyncio.sleep(pause)

    async def read(self) -> None:
        """Read both servers once."""
        await asyncio.gather(*(self._read_one(server) for server in self._reads))

    async def _read_one(self, server: str) -> None:
        try:
            found = await self._reads[server].get(_READ_SECONDS)
        except (RedisError, SQLAlchemyError, LonghaulError, OSError) as error:
            if self._up.get(server, True):
                logger.warning("state not read server=%s error=%s", server, format_error(error))
            self._up[server] = False
        else:
            self._found[server] = (time.monotonic(), found)
            self._up[server] = True

    def snapshot(self) -> Snapshot:
        """Return what the last reads have found. If a server has not answered for some time, its values are absent."""
        now, found = time.monotonic(), Snapshot()
        for read_at, values in self._found.values():
            if now - read_at <= max(self._kept_seconds, _KEPT_READS * _READ_SECONDS):
                found |= values
        found[names.SERVER_UP.name] = {(server,): float(is_up) for server, is_up in self._up.items()}
        return {name: values for name, values in found.items() if values}

    async def check(self) -> dict[str, str]:
        """Return for each server and for the ledger `ok`, or a problem in words that tell nothing about the server."""
        answers = await asyncio.gather(*map(self._ask, self._answers))
        found = dict(zip(self._answers, answers, strict=True))
        if "postgresql" not in found:
            return found
        postgresql = found["postgresql"]
        ledger = postgresql if postgresql in ("ok", "not migrated: run worker migrate") else "unknown"
        return {**found, "postgresql": "ok" if ledger == postgresql else postgresql, "ledger": ledger}

    async def _ask(self, server: str) -> str:
        try:
            await self._answers[server].get(self._rules.answer_seconds)
        except DatabaseNotMigrated:
            return "not migrated: run worker migrate"
        except TimeoutError:
            return f"no answer within {self._rules.answer_seconds:g} s"
        except (RedisError, SQLAlchemyError, LonghaulError, OSError) as error:
            logger.debug("server not ready server=%s error=%s", server, format_error(error))
            return "not available"
        return "ok"

    async def close(self) -> None:
        """End the reads, and close the connections."""
        await asyncio.gather(*(read.close() for read in (*self._reads.values(), *self._answers.values())))
        await self._database.close()
        await self._redis.aclose(close_connection_pool=True)

    # --- PostgreSQL

    async def _check_ledger(self) -> None:
        await check_migrated(self._database)

    async def _read_outbox(self) -> Snapshot:
        async with self._database.connection() as connection:
            state: OutboxState = await read_outbox_state(connection, most=_MOST_OUTBOX_ROWS)
        return {
            names.OUTBOX_ROWS.name: {(): float(state.waiting)},
            names.OUTBOX_OLDEST.name: {(): max(0.0, state.oldest_seconds)},
            names.OUTBOX_REFUSED.name: {(): float(state.refused)},
        }

    # --- Redis

    async def _ping(self) -> None:
        await self._redis.ping()

    async def _read_queues(self) -> Snapshot:
        seconds, microseconds = await self._redis.time()
        now_ms = int(seconds) * 1000 + int(microseconds) // 1000
        pipeline = self._redis.pipeline(transaction=False)
        for queue in self._queues:
            pipeline.zcount(queue, "-inf", now_ms)
            pipeline.zrange(queue, _EARLIEST_DUE_MS, now_ms, byscore=True, offset=0, num=1, withscores=True)
            pipeline.zcard(queue)
        pipeline.hlen(keys.DEAD)
        # A key of another type counts as an empty one: `worker doctor` reports it. Any other error is one of the read.
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception) and "WRONGTYPE" not in str(answer):
                raise answer
        *of_queues, dead = (None if isinstance(answer, ResponseError) else answer for answer in answers)
        found: Snapshot = {metric.name: {} for metric in (names.QUEUE_DUE, names.QUEUE_OLDEST, names.QUEUE_ENTRIES)}
        for at, queue in enumerate(self._queues):
            due, oldest, entries = of_queues[3 * at : 3 * at + 3]
            label = (escape(queue),)
            found[names.QUEUE_DUE.name][label] = float(due or 0)
            found[names.QUEUE_OLDEST.name][label] = max(0.0, (now_ms - oldest[0][1]) / 1000) if oldest else 0.0
            found[names.QUEUE_ENTRIES.name][label] = float(entries or 0)
        found[names.DEAD_LETTERS.name] = {(): float(dead or 0)}
        return found
