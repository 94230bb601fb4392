"""The last lines of a run's log: in the stream `worker:log:<id>`, and in the ledger if the run is in it."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from worker.errors import InvalidPayload
from worker.queue import keys
from worker.queue.decoding import read_json, read_time
from worker.queue.run import decode_fields
from worker.queue.run_reader import RunReader

if TYPE_CHECKING:
    from worker.ledger import Ledger

#: A stream that another client has filled is read up to this number of lines.
_MOST_LINES = 10_000


@dataclass(frozen=True)
class LogLine:
    """A line of a run's log.

    Attributes:
        time: aware time of the line.
        level: name of its level.
        logger: name of its logger.
        message: its text.
        run: id of the run; of a line of a helper run, the id of that.
        worker: name of the worker.
        attempt: number of the attempt; None if it is not known.
        step: name of the loop or step in which it was written; None outside of loops.
        exception: the end of the traceback; None without an exception.
        extra: further fields of the line.
    """

    time: datetime
    level: str
    logger: str
    message: str
    run: str
    worker: str
    attempt: int | None
    step: str | None
    exception: str | None
    extra: dict[str, Any]


async def read_log(reader: RunReader, run_id: str, *, ledger: Ledger | None) -> list[LogLine]:
    """Return the last lines of a run's log, oldest first: of all attempts, and of the helper runs of its walks.

    Args:
        reader: connection to Redis.
        run_id: id of the run.
        ledger: the ledger, which has the lines of attempts that have ended, also after Redis has forgotten the run;
            None to look in Redis alone.
    """
    redis = reader.redis
    entries = await reader.command(cast(Awaitable[list[Any]], redis.xrevrange(keys.LOG + run_id, count=_MOST_LINES)))
    found = [decode_fields(fields) for _, fields in reversed(entries)]
    if ledger is not None:
        known = {_identity(fields) for fields in found}
        recorded = [fields for fields in map(_read_fields, await ledger.read_log(run_id)) if fields]
        found = [fields for fields in recorded if _identity(fields) not in known] + found
    return sorted((_make_line(run_id, fields) for fields in found), key=lambda line: line.time)


def _identity(fields: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(fields.items()))


def _read_fields(text: str) -> dict[str, str]:
    """Return the fields of a line of the ledger; none if it was changed by hand."""
    return {name: str(value) for name, value in _read_object(text).items()}


def _read_object(text: str) -> dict[str, Any]:
    try:
        value = read_json(text, "a line of the log")
    except InvalidPayload:
        return {}
    return value if isinstance(value, dict) else {}


def _make_line(run_id: str, fields: Mapping[str, str]) -> LogLine:
    attempt = fields.get("attempt", "")
    return LogLine(
        time=read_time(fields.get("time")) or datetime.fromtimestamp(0, UTC),
        level=fields.get("level", ""),
        logger=fields.get("logger", ""),
        message=fields.get("message", ""),
        run=fields.get("run") or run_id,
        worker=fields.get("worker", ""),
        attempt=int(attempt) if attempt.isdecimal() and len(attempt) < 10 else None,
        step=fields.get("step"),
        exception=fields.get("exception"),
        extra=_read_object(fields.get("extra", "{}")),
    )
