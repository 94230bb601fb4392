"""Relay: moves runs from the outbox in PostgreSQL to their queues in Redis, each once.

A batch is one transaction: it locks rows (SKIP LOCKED, so that relays of many workers share them), one script enqueues
their runs, and the rows are deleted after Redis has acknowledged. A relay that dies in between leaves the rows. The
script marks each row in Redis, so that the next relay deletes them without enqueueing them again, however long ago
their runs have ended: see relay.lua. A mark is deleted when its row is gone and no call of the script can still be
under way.

PostgreSQL announces new rows by NOTIFY. To wake one worker and not all of them, only the relay that holds an advisory
lock of its session listens. The others look at the outbox at an interval, and take over the lock if it is free. Through
PgBouncer, where a session has neither locks nor LISTEN, all of them look at an interval.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, cast

import asyncpg
from redis.asyncio import Redis
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.cancellation import cancel_and_wait, run_to_completion
from worker.db.driver import Driver
from worker.db.engine import Database
from worker.errors import InvalidPayload, format_error
from worker.job.definition import Job
from worker.ledger import Ledger
from worker.ledger.outbox import CHANNEL, OutboxRow, claim_rows, delete_rows, list_marks, mark_rows
from worker.queue import keys
from worker.queue.key_problems import KeyProblemLog, from_script
from worker.queue.outbox import RelayedRun, check_row
from worker.queue.payload import LAST_MS
from worker.queue.scripts import script
from worker.settings import Settings

logger = logging.getLogger("longhaul.relay")

_ROWS_AT_ONCE = 2000
_ROWS_PER_CALL = 500  # a script blocks Redis for all clients
_BYTES_AT_ONCE = 16_000_000
#: Rows before the last one that was relayed that a look includes. Transactions commit in another order than that of
#: the ids of their rows. A full look finds the rest, and costs more the more deleted rows VACUUM has not removed yet.
_OVERLAP_ROWS = 1000
_FULL_LOOK_SECONDS = 1.0
#: Longest pause of the relay that listens, after a full look that found nothing: each new row is announced to it.
_ANNOUNCED_SECONDS = 10.0
#: Longest time for one look while many rows wait.
_LOOK_SECONDS = 10.0
#: Time after which a call of the script changes nothing, by the clock of Redis, from before its rows were locked.
VALID_MS = 20_000
#: Age at which a mark may be deleted, several times the time above.
_MARK_MS = 120_000
_MARKS_AT_ONCE = 5000
_FORGET_SECONDS = 10.0
#: Lifetime of the set of marks after the last one.
_KEEP_MARKS_MS = 30 * 86_400_000
#: Shortest lifetime of the result that names the run whose duplicate was dropped.
_DUPLICATE_MS = 3_600_000
_LOCK = 0x6F7574626F78  # "outbox"
_UNREADABLE_QUEUE = "its queue in Redis is not a sorted set: see `worker doctor`"


class Relay:
    """Moves runs from the outbox to their queues. Any number of workers may do this at the same time.

    Args:
        settings: the settings of the worker.
        redis: connection to the queues.
        ledger: names the application, whose marks are apart from those of others.
        problems: reports unsound keys of Redis.
        name: name of the worker.
        jobs: the jobs that the worker knows, by name: their rules complete rows of the SQL function.
    """

    def __init__(
        self,
        settings: Settings,
        redis: Redis,
        ledger: Ledger,
        problems: KeyProblemLog,
        name: str,
        jobs: Mapping[str, Job[..., Any]],
    ) -> None:
        self._jobs = jobs
        self._rules = settings.worker
        self._queues = settings.own_queues()
        self._keep_duplicate_ms = max(_DUPLICATE_MS, round(self._rules.result_ttl_seconds * 1000))
        # A connection of its own: the pool may be exhausted by jobs, and LISTEN needs one for good.
        small = settings.database.model_copy(update={"pool_size": 1, "max_overflow": 0, "replica_url": None})
        self._database = Database(settings.model_copy(update={"database": small}), f"{name}:relay")
        self._redis = redis
        self._ledger = ledger
        self._problems = problems
        self._script = redis.register_script(script("relay"))
        self._busy = asyncio.Lock()
        self._connection: AsyncConnection | None = None
        self._listens = False
        self._is_empty = False
        self._notified = asyncio.Event()
        self._marks = ""
        self._after = self._relayed = 0
        self._full_look_at = 0.0
        self._forget_at = 0.0

    async def run(self) -> None:
        """Wait until rows are announced or the interval has passed, and relay what the outbox has."""
        if self._connection is not None:
            pause = self._rules.outbox_poll_seconds
            if self._listens and self._is_empty:
                pause = max(pause, _ANNOUNCED_SECONDS)
            with suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._notified.wait()
        self._notified.clear()
        await self.relay_waiting()

    async def relay_waiting(self) -> int:
        """Relay the rows that the outbox has. Return their number.

        If very many wait, return after some seconds.
        """
        async with self._busy:
            self._is_empty = False
            try:
                connection = await self._connect()
                relayed = await self._relay_batches(connection)
                await self._forget_marks(connection)
            except RedisError:
                raise  # the transaction was rolled back: the connection stays
            except (asyncpg.InterfaceError, asyncpg.PostgresError) as error:
                await self._disconnect()
                raise ConnectionError(f"outbox: PostgreSQL: {format_error(error)}") from error
            except BaseException:
                await self._disconnect()
                raise
            return relayed

    async def try_relay(self) -> int:
        """Relay the rows that the outbox has, if both servers answer.

        Returns:
            The number of rows that were relayed since the last call, also by the periodic task.
        """
        try:
            await self.relay_waiting()
        except (RedisError, SQLAlchemyError, OSError) as error:
            logger.warning("outbox not relayed error=%s: its rows wait", format_error(error))
        relayed, self._relayed = self._relayed, 0
        return relayed

    async def close(self) -> None:
        """Close the connection."""
        async with self._busy:
            await self._disconnect()
            await self._database.close()

    # --- the connection

    async def _connect(self) -> AsyncConnection:
        """Return the connection, which listens if this relay is the one that does."""
        if self._connection is None:
            self._marks = self._marks or keys.RELAYED + await self._ledger.read_application()
            self._connection = await self._database.engine.connect()
            self._listens = False
            self._full_look_at = 0.0
        if not self._listens and not self._database.pooled:
            took = await self._connection.scalar(text("SELECT pg_catalog.pg_try_advisory_lock(:lock)"), {"lock": _LOCK})
            await self._connection.commit()
            if took:
                driver = await Driver.from_connection(self._connection)
                driver.raw.add_termination_listener(self._hear)
                await driver.raw.add_listener(CHANNEL, self._hear)
                self._listens = True
        return self._connection

    def _hear(self, *_: Any) -> None:
        self._notified.set()

    async def _disconnect(self) -> None:
        """Close the connection to the server, with its lock and its LISTEN."""
        connection, self._connection, self._listens = self._connection, None, False
        if connection is not None:
            await run_to_completion(_close(connection))

    # --- rows

    async def _relay_batches(self, connection: AsyncConnection) -> int:
        loop = asyncio.get_running_loop()
        began, relayed = loop.time(), 0
        while True:
            after = self._after
            if loop.time() >= self._full_look_at:
                after, self._full_look_at = 0, loop.time() + _FULL_LOOK_SECONDS
            rows = await self._relay_batch(connection, after)
            relayed += len(rows)
            self._is_empty = not rows and not after
            if len(rows) < _ROWS_AT_ONCE and sum(row.bytes for row in rows) < _BYTES_AT_ONCE:
                return relayed
            if loop.time() - began > _LOOK_SECONDS:
                self._notified.set()
                return relayed

    async def _relay_batch(self, connection: AsyncConnection, after: int) -> list[OutboxRow]:
        """Relay some rows in one transaction, and return them."""
        valid_until_ms = await self._redis_ms() + VALID_MS
        async with connection.begin():
            rows = await claim_rows(
                connection,
                after=after,
                limit=_ROWS_AT_ONCE,
                max_bytes=self._rules.max_payload_bytes,
                most_bytes=_BYTES_AT_ONCE,
                queues=self._queues,
            )
            if not rows:
                return rows
            refused = await self._enqueue(rows, valid_until_ms)
            await self._finish(connection, rows, refused)
        self._relayed += len(rows) - len(refused)
        self._after = max(self._after, rows[-1].id - _OVERLAP_ROWS)
        for row, problem in refused:
            logger.error("outbox row refused id=%d run=%s error=%s", row.id, row.run_id, problem)
        return rows

    async def _finish(
        self, connection: AsyncConnection, rows: Sequence[OutboxRow], refused: Sequence[tuple[OutboxRow, str]]
    ) -> None:
        """Delete the rows whose runs Redis has, and keep the others with their problem."""
        kept = {row.id for row, _ in refused}
        await delete_rows(connection, [row.id for row in rows if row.id not in kept])
        if refused:
            await mark_rows(connection, [(row.id, problem) for row, problem in refused])

    def _check(
        self, rows: Sequence[OutboxRow]
    ) -> tuple[list[tuple[OutboxRow, RelayedRun]], list[tuple[OutboxRow, str]]]:
        """Return the rows that can be enqueued, and the others with their problem."""
        good: list[tuple[OutboxRow, RelayedRun]] = []
        refused: list[tuple[OutboxRow, str]] = []
        most = self._rules.max_payload_bytes
        for row in rows:
            if row.payload is None:
                refused.append((row, f"the payload has {row.bytes:,} bytes, and worker.max_payload_bytes is {most:,}"))
                continue
            if row.due_ms is not None and row.due_ms >= LAST_MS:
                refused.append((row, "its due time is after the year 9999"))
                continue
            try:
                checked = check_row(
                    row.run_id,
                    row.payload,
                    queue=row.queue or self._rules.queue,
                    priority=row.priority,
                    options=row.options,
                    max_payload_bytes=most,
                    jobs=self._jobs,
                )
            except InvalidPayload as error:
                refused.append((row, str(error)))
            else:
                good.append((row, checked))
        return good, refused

    async def _enqueue(self, rows: Sequence[OutboxRow], valid_until_ms: int) -> list[tuple[OutboxRow, str]]:
        """Enqueue runs. Return the rows that cannot be enqueued, with their problem.

        Rows are checked while Redis enqueues the rows before them.
        """
        refused: list[tuple[OutboxRow, str]] = []
        call: asyncio.Task[list[OutboxRow]] | None = None
        try:
            for first in range(0, len(rows), _ROWS_PER_CALL):
                good, problems = self._check(rows[first : first + _ROWS_PER_CALL])
                refused += problems
                unsound = [] if call is None else await call
                refused += [(row, _UNREADABLE_QUEUE) for row in unsound]
                call = asyncio.create_task(self._call_script(good, valid_until_ms)) if good else None
                await asyncio.sleep(0)  # the task sends its command before the next rows are checked
            unsound = [] if call is None else await call
        except BaseException:
            if call is not None:
                await cancel_and_wait(call)
            raise
        return refused + [(row, _UNREADABLE_QUEUE) for row in unsound]

    async def _call_script(self, good: Sequence[tuple[OutboxRow, RelayedRun]], valid_until_ms: int) -> list[OutboxRow]:
        """Enqueue runs by one call of the script. Return the rows whose queue is not a sorted set."""
        prefixes = (keys.JOB, keys.RESULT, keys.IN_PROGRESS, keys.UNIQUE, keys.PRIORITIES, keys.PRIORITY)
        values: list[Any] = [valid_until_ms, _KEEP_MARKS_MS, *prefixes, self._keep_duplicate_ms]
        for description, alike in groupby(good, key=lambda one: one[1].description):
            same = list(alike)
            values += (description, len(same))
            for row, run in same:
                values += (row.run_id, run.payload, row.mark, "" if row.due_ms is None else row.due_ms)
        answer = await cast(Awaitable[Any], self._script(keys=[self._marks, keys.CANCELLED], args=values))
        if answer == b"late":
            raise TimeoutError(f"outbox: rows were locked for more than {VALID_MS / 1000:g} s: they are read again")
        answers, problems = answer
        self._problems.report(map(from_script, problems))
        if len(answers) != len(good):
            raise TimeoutError(f"outbox: {self._marks} is not a sorted set: rows wait until it is deleted")
        return [row for (row, _), answer in zip(good, answers, strict=True) if answer == -2]

    # --- marks

    async def _forget_marks(self, connection: AsyncConnection) -> None:
        """Delete old marks whose rows are gone."""
        if time.monotonic() < self._forget_at:
            return
        self._forget_at = time.monotonic() + _FORGET_SECONDS
        before, offset = await self._redis_ms() - _MARK_MS, 0
        while True:
            raw = await self._redis.zrangebyscore(self._marks, "-inf", before, start=offset, num=_MARKS_AT_ONCE)
            if not raw:
                return
            marks = [one.decode(errors="replace") for one in raw]
            numbers = [mark.partition(":")[0] for mark in marks]
            ids = [int(number) for number in numbers if number.isdecimal() and len(number) < 19]
            async with connection.begin():
                remaining = await list_marks(connection, ids)
            gone = [one for one, mark in zip(raw, marks, strict=True) if mark not in remaining]
            if gone:
                await self._redis.zrem(self._marks, *gone)
            offset += len(raw) - len(gone)

    async def _redis_ms(self) -> int:
        """Return the time of Redis in ms, rounded down."""
        seconds, microseconds = await self._redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000


async def _close(connection: AsyncConnection) -> None:
    """Close a connection to the server, whatever state it is in; the pool must not give it to others."""
    with suppress(Exception):  # it may be broken already
        await connection.invalidate()
    await connection.close()
