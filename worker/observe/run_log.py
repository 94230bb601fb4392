"""The last lines of the log of each run, kept with the run in Redis and in the ledger.

Lines of all loggers from INFO on are kept, if they are written while the run's code runs, in a thread or process too,
or by the worker about the run. They stay in memory, in a ring for each attempt, and are written twice a second in one
pipeline: no line costs a command, and no batch a statement. In the ledger, one statement appends the lines of the
attempts that have ended since the last write.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from redis.asyncio import Redis
from sqlalchemy.exc import SQLAlchemyError

from worker.attempt.process_protocol import find_attempt, message_of
from worker.errors import format_error
from worker.ledger import Ledger
from worker.observe.json_values import plain_fields, plain_text
from worker.observe.log_fields import exception_of, extra_fields, is_own, message_fields, run_fields
from worker.observe.masking import Mask
from worker.observe.mirror_entry import format_time
from worker.observe.redis_writer import RedisWriter
from worker.queue import keys
from worker.queue.outage_log import OutageLog
from worker.runtime.observer import Observer, RunInfo
from worker.settings import Settings

logger = logging.getLogger("longhaul.log")

WRITE_SECONDS = 0.5
_WRITING = "the logs of runs cannot be written"
_MESSAGE_CHARACTERS = 4_000
_EXCEPTION_CHARACTERS = 8_000
_EXTRA_CHARACTERS = 2_000
#: Memory of an entry of a stream beside its texts, in bytes, about.
_ENTRY_BYTES = 64
#: Lifetime of the log of a run that has not ended, after its last line.
_OPEN_SECONDS = 30 * 86_400
_DAY_SECONDS = 86_400
#: The most logs of runs that succeed between two writes to keep.
_BRIEF_KEPT = 25
#: The most logs of ended attempts to keep in memory while a server is away.
_MOST_WAITING = 1_000


class _Line(NamedTuple):
    number: int
    fields: dict[str, str]
    size: int


class AttemptLog:
    """The last lines of one attempt.

    Args:
        run: the run.
        most_lines: the most lines to keep.
        most_bytes: the most bytes to keep.

    Attributes:
        lines: the lines, oldest first.
        written: number of the last line that Redis has.
        is_durable: whether the ledger has the run.
        ttl: lifetime in Redis from the end of the attempt, in seconds; None before the end.
        is_notable: whether it has a line of the job's own code, or a warning.
        has_overflowed: whether it has dropped lines.
    """

    def __init__(self, run: RunInfo, most_lines: int, most_bytes: int) -> None:
        self.run = run
        self.lines: deque[_Line] = deque()
        self.written = 0
        self.is_durable = False
        self.ttl: int | None = None
        self.is_notable = False
        self.has_overflowed = False
        self._most_lines, self._most_bytes = most_lines, most_bytes
        self._bytes = self._count = 0

    @property
    def run_id(self) -> str:
        """Id of the run that keeps the lines: for a helper run, the run that it helps."""
        return self.run.helps or self.run.run_id

    def add(self, fields: dict[str, str]) -> None:
        """Add a line, and drop the oldest ones beyond the limits."""
        self._count += 1
        size = _ENTRY_BYTES + sum(map(len, fields.values()))
        self.lines.append(_Line(self._count, fields, size))
        self._bytes += size
        while len(self.lines) > self._most_lines or (self._bytes > self._most_bytes and len(self.lines) > 1):
            self._bytes -= self.lines.popleft().size
            self.has_overflowed = True


class RunLog(Observer):
    """An `Observer` that keeps the last lines of each run.

    Args:
        redis: the connection to write to.
        settings: the settings: limits, retention, and the secrets to mask.
        name: the name of this worker.
        outage: the log of outages.

    Attributes:
        ledger: the ledger, for the logs of runs that it has; None for none.
    """

    def __init__(self, redis: Redis, settings: Settings, name: str, outage: OutageLog | None = None) -> None:
        self.ledger: Ledger | None = None
        self._redis = redis
        self._rules = settings.worker
        self._limits = settings.log.run_lines, settings.log.run_bytes
        self._name = name
        self._mask = Mask(settings)
        self._writer = RedisWriter(redis, outage, _WRITING)
        self._running: dict[str, RunInfo] = {}
        self._logs: dict[str, AttemptLog] = {}  # of attempts that run and have a line
        self._ended: deque[AttemptLog] = deque(maxlen=_MOST_WAITING)
        self._for_ledger: deque[AttemptLog] = deque(maxlen=_MOST_WAITING)
        self._handler = _Handler(self)
        self._write: asyncio.Task[None] | None = None

    # --- observed events

    def worker_started(self) -> None:
        """Begin to receive the lines of all loggers."""
        logging.getLogger().addHandler(self._handler)

    async def close(self) -> None:
        """Write the last lines."""
        logging.getLogger().removeHandler(self._handler)
        self._ended += self._logs.values()
        self._logs.clear()
        self._running.clear()
        if self._write is not None:
            await asyncio.wait({self._write})
        await self.write()

    def started(self, run: RunInfo) -> None:
        """Keep the lines of an attempt from now on."""
        self._running[run.run_id] = run
        self._logs.pop(run.run_id, None)

    def durable(self, run: RunInfo, *, attempt: int, takeovers: int, rows: int) -> None:
        """Note that the ledger has the run."""
        if run.run_id in self._running:
            self._find_log(run).is_durable = True

    def requeued(
        self, run: RunInfo, state: str, *, error: str | None = None, delay: float = 0.0, how: str = "released"
    ) -> None:
        """The attempt has ended, the run has not."""
        self._end(run, _OPEN_SECONDS, is_brief=False)

    def ended(self, run: RunInfo, state: str, *, error: str | None = None, result: Any = None) -> None:
        """The run has ended."""
        keep = max(60, round(self._rules.result_ttl_seconds))
        if state == "dead":
            keep = max(keep, round(self._rules.dead_letter_ttl_days * _DAY_SECONDS))
        self._end(run, _OPEN_SECONDS if run.helps else keep, is_brief=state == "succeeded")

    def lost(self, run: RunInfo) -> None:
        """Another worker has the run."""
        self._end(run, _OPEN_SECONDS, is_brief=False)

    def _end(self, run: RunInfo, ttl: int, *, is_brief: bool) -> None:
        self._running.pop(run.run_id, None)
        log = self._logs.pop(run.run_id, None)
        if log is None or not log.lines:
            return
        log.ttl = ttl
        is_brief = is_brief and not log.written and not log.is_durable  # a queue has thousands of these a second
        if not is_brief or (log.is_notable and len(self._ended) < _BRIEF_KEPT):
            self._ended.append(log)

    # --- lines

    def add(self, record: logging.LogRecord) -> None:
        """Keep a record if it belongs to a run of this worker. Called in any thread, one at a time."""
        if not self._running:
            return
        run = self._find_run(record)
        if run is not None:
            log = self._find_log(run)
            log.is_notable = log.is_notable or record.levelno >= logging.WARNING or not is_own(record)
            log.add(self._describe(record, run))

    def _find_run(self, record: logging.LogRecord) -> RunInfo | None:
        attempt = find_attempt(record)
        if is_own(record):
            named = message_fields(record).get("run")
            return self._running.get(named or (attempt.run if attempt else ""))
        return None if attempt is None else self._running.get(attempt.run)

    def _find_log(self, run: RunInfo) -> AttemptLog:
        return self._logs.get(run.run_id) or self._logs.setdefault(run.run_id, AttemptLog(run, *self._limits))

    def _describe(self, record: logging.LogRecord, run: RunInfo) -> dict[str, str]:
        known = run_fields(record)
        fields = {
            "time": format_time(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": self._text(message_of(record), _MESSAGE_CHARACTERS),
            "worker": self._name,
            "attempt": str(known.get("attempt", run.attempt)),
        }
        if "step" in known:
            fields["step"] = self._text(str(known["step"]), _EXTRA_CHARACTERS)
        if run.helps:
            fields["run"] = run.run_id
        if text := exception_of(record):
            fields["exception"] = plain_text(self._mask(text), _EXCEPTION_CHARACTERS, keeps_end=True)
        if not is_own(record) and (extra := extra_fields(record)):
            fields["extra"] = self._mask(json.dumps(plain_fields(extra, _EXTRA_CHARACTERS)))
        return fields

    def _text(self, text: str, characters: int) -> str:
        return plain_text(self._mask(text), characters)

    # --- writing

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            # A write that is cancelled would lose its lines, or write them twice: `close` waits for it.
            self._write = asyncio.create_task(self.write())
            await asyncio.shield(self._write)
            await asyncio.sleep(WRITE_SECONDS)

    async def write(self) -> None:
        """Write the new lines to Redis, and those of ended attempts to the ledger."""
        ended = [self._ended.popleft() for _ in range(len(self._ended))]
        changed = [log for log in list(self._logs.values()) if self._new_lines(log)]
        if ended or changed or self._writer.has_failed:
            if await self._write_redis([*ended, *changed]):
                self._for_ledger += [log for log in ended if log.is_durable]
            else:
                self._ended.extendleft(reversed(ended))
        if self._for_ledger and self.ledger is not None:
            await self._write_ledger(self.ledger)

    def _new_lines(self, log: AttemptLog) -> list[_Line]:
        with self._handler.locked():
            return [line for line in log.lines if line.number > log.written]

    async def _write_redis(self, logs: Sequence[AttemptLog]) -> bool:
        """Append new lines to the streams of their runs. Return False if Redis has written nothing."""
        pipeline = self._redis.pipeline(transaction=True)
        last: list[tuple[AttemptLog, int]] = []
        for log in logs:
            key, lines = keys.LOG + log.run_id, self._new_lines(log)
            # Lines that this attempt has dropped for their size are deleted from the stream, too.
            most = len(log.lines) if log.has_overflowed else self._limits[0]
            for line in lines:
                pipeline.xadd(key, line.fields, maxlen=most, approximate=False)  # type: ignore[arg-type]
            pipeline.expire(key, log.ttl or _OPEN_SECONDS)
            if lines:
                last.append((log, lines[-1].number))
        if not logs:  # a write that changes nothing: is Redis back, after lines that were not worth keeping?
            pipeline.xadd(keys.LOG, {"time": ""}, nomkstream=True)
        if not await self._writer.execute(pipeline):
            return False
        for log, number in last:
            log.written = number
        return True

    async def _write_ledger(self, ledger: Ledger) -> None:
        logs = [self._for_ledger.popleft() for _ in range(len(self._for_ledger))]
        texts: dict[str, list[str]] = {}
        for log in logs:
            texts.setdefault(log.run_id, []).extend(json.dumps(line.fields) for line in log.lines)
        try:
            await ledger.append_logs(texts, lines=self._limits[0], size=self._limits[1])
        except (SQLAlchemyError, OSError) as error:
            logger.debug("logs of runs not recorded runs=%d error=%s", len(texts), format_error(error))
            self._for_ledger.extendleft(reversed(logs))


class _Handler(logging.Handler):
    """Passes the records of all loggers on, one at a time."""

    def __init__(self, log: RunLog) -> None:
        super().__init__(logging.INFO)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        try:
            self._log.add(record)
        except Exception:  # noqa: BLE001 - as any handler: a record that cannot be kept is no error of the job
            self.handleError(record)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep threads from adding lines meanwhile."""
        self.acquire()
        try:
            yield
        finally:
            self.release()
