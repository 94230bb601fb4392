"""Dead letters: jobs that have failed permanently, with arguments, error, traceback and attempts.

The ledger keeps runs with a durable loop. The hash `worker:dead` keeps all other jobs for
`worker.dead_letter_ttl_days`. It also mirrors the dead runs of the ledger, so that `HGETALL worker:dead` shows
everything. The sorted set `worker:dead:at` has the times of the letters, so that the newest can be read without reading
all of them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from redis.asyncio import Redis

from worker.errors import InvalidPayload
from worker.queue import keys
from worker.queue.decoding import read_json, read_time
from worker.queue.key_problems import KeyProblem, wrong_value
from worker.queue.payload import decode_payload

if TYPE_CHECKING:
    from worker.ledger import Ledger
    from worker.ledger.records import DeadRun

_AT_ONCE = 100
_MOST_PROBLEMS = 10
_TRACEBACK_CHARACTERS = 8_000


@dataclass(frozen=True)
class DeadLetter:
    """A run that has failed permanently.

    Attributes:
        id: id of the run.
        job: name of the job; empty if the payload could not be read.
        queue: queue of the run.
        attempts: number of the last attempt.
        at: time of the failure.
        error: the error, in one line.
        traceback: the end of the traceback.
        payload: the payload, as it was in the queue.
        in_ledger: whether the ledger has the run.
    """

    id: str
    job: str
    queue: str
    attempts: int
    at: datetime
    error: str
    traceback: str
    payload: bytes
    in_ledger: bool

    @classmethod
    def read(cls, run_id: str, raw: bytes) -> DeadLetter | None:
        """Return a letter of `worker:dead`; None for a value that no worker wrote."""
        try:
            values = read_json(raw, "the dead letter")
            encoded = values.get("payload_base64")
            payload = values["payload"].encode() if encoded is None else base64.b64decode(encoded)
            texts = [values.get(name, "") for name in ("job", "queue", "error", "traceback")]
            attempts, in_ledger = values["attempts"], values.get("ledger", False)
            at = read_time(values["at"])
        except (InvalidPayload, ValueError, KeyError, TypeError, AttributeError):
            return None
        if (
            at is None
            or not all(isinstance(text, str) for text in texts)
            or type(attempts) is not int
            or type(in_ledger) is not bool
        ):
            return None
        job, queue, error, trace = texts
        return cls(run_id, job, queue, attempts, at, error, trace, payload, in_ledger)

    @classmethod
    def of_run(cls, run: DeadRun) -> DeadLetter:
        """Return the letter of a run of the ledger."""
        return cls(
            id=run.id,
            job=run.job,
            queue=run.queue,
            attempts=run.attempt,
            at=run.finished_at,
            error=run.error or "",
            traceback=run.traceback or "",
            payload=run.payload.encode(),
            in_ledger=True,
        )

    @property
    def arguments(self) -> Any:
        """The arguments by name, preceded by a list of positional arguments if any; or the payload if it has none."""
        try:
            payload = decode_payload(self.payload, accept_pickle=False)
        except InvalidPayload:
            return self.payload.decode(errors="backslashreplace")
        return [*payload.args, payload.kwargs] if payload.args else payload.kwargs


def encode_letter(
    payload: bytes, *, job: str, queue: str, attempts: int, error: str, trace: str, in_ledger: bool
) -> bytes:
    """Return the value of a field of `worker:dead`.

    Args:
        payload: the payload, as it was in the queue.
        job: name of the job; empty if the payload could not be read.
        queue: queue of the run.
        attempts: number of its last attempt.
        error: the reason, in one line.
        trace: the traceback; its end is kept.
        in_ledger: whether the ledger has the run, so that the letter only mirrors it.
    """
    try:
        stored = {"payload": payload.decode()}
    except UnicodeDecodeError:
        stored = {"payload_base64": base64.b64encode(payload).decode()}
    letter = {
        "job": _escape(job),
        "queue": _escape(queue),
        **stored,
        "error": _escape(error),
        "traceback": _escape(trace[-_TRACEBACK_CHARACTERS:]),
        "ledger": in_ledger,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "attempts": attempts,
    }
    return json.dumps(letter, ensure_ascii=False).encode()


def _escape(text: str) -> str:
    """Return a text with lone surrogates escaped, e.g. of a file's name: as JSON, the letter could not be read."""
    return text.encode(errors="backslashreplace").decode()


@dataclass(frozen=True)
class DeadLetterFilter:
    """A filter for letters. A letter has to match all conditions.

    Attributes:
        ids: ids of the runs.
        job: name of the job.
        before: only failures before this time.
    """

    ids: tuple[str, ...] | None = None
    job: str | None = None
    before: datetime | None = None

    def has(self, letter: DeadLetter) -> bool:
        """Return whether a letter matches."""
        return (
            (self.ids is None or letter.id in self.ids)
            and (self.job is None or letter.job == self.job)
            and (self.before is None or letter.at < self.before)
        )


async def dead_letters(
    redis: Redis, ledger: Ledger, chosen: DeadLetterFilter, limit: int | None = None
) -> list[DeadLetter]:
    """Return dead letters of the ledger and of `worker:dead`, the newest first."""
    ids = None if chosen.ids is None else list(chosen.ids)
    runs = await ledger.list_dead(ids=ids, job=chosen.job, before=chosen.before, limit=limit)
    found = [DeadLetter.of_run(run) for run in runs]
    in_ledger = {run.id for run in runs}
    async for letter in _letters(redis, chosen.ids):
        if not letter.in_ledger and letter.id not in in_ledger and chosen.has(letter):
            found.append(letter)
            if limit is not None and len(found) > 2 * limit + _AT_ONCE:
                found = _newest(found, limit)
    return _newest(found, limit)


async def list_dead_letters(redis: Redis, chosen: DeadLetterFilter, *, limit: int | None = None) -> list[DeadLetter]:
    """Return the letters of `worker:dead`, the newest first. It also mirrors the runs that the ledger has."""
    found: list[DeadLetter] = []
    async for letter in _letters(redis, chosen.ids):
        if chosen.has(letter):
            found.append(letter)
            if limit is not None and len(found) > 2 * limit + _AT_ONCE:
                found = _newest(found, limit)
    return _newest(found, limit)


async def delete_dead(redis: Redis, ledger: Ledger, letters: list[DeadLetter]) -> None:
    """Delete letters; those of the ledger together with their steps and quarantined rows."""
    for first in range(0, len(letters), _AT_ONCE):
        part = letters[first : first + _AT_ONCE]
        await ledger.delete_dead([letter.id for letter in part if letter.in_ledger])
        await forget_letters(redis, [letter.id for letter in part])


async def prune_dead(redis: Redis, keep_seconds: float, problems: list[KeyProblem] | None = None) -> int:
    """Delete letters of `worker:dead` that are older.

    Also add the times of letters that are missing in `worker:dead:at`, because an older version wrote them.

    Args:
        redis: connection that returns bytes.
        keep_seconds: the age from which letters are deleted.
        problems: the list to which letters that cannot be read are added; they stay.

    Returns:
        The number of deleted letters.
    """
    before = datetime.now(UTC) - timedelta(seconds=keep_seconds)
    old, times = [], {}
    async for letter in _letters(redis, None, problems):
        if letter.at < before:
            old.append(letter.id)
        else:
            times[letter.id] = round(letter.at.timestamp() * 1000)
        if len(times) >= _AT_ONCE:
            await redis.zadd(keys.DEAD_AT, times, nx=True)
            times = {}
    if times:
        await redis.zadd(keys.DEAD_AT, times, nx=True)
    for first in range(0, len(old), _AT_ONCE):
        await forget_letters(redis, old[first : first + _AT_ONCE])
    await redis.zremrangebyscore(keys.DEAD_AT, "-inf", round(before.timestamp() * 1000))
    return len(old)


async def forget_letters(redis: Redis, ids: list[str]) -> None:
    """Delete letters of `worker:dead`, their times, and the last lines of their logs."""
    pipeline = redis.pipeline(transaction=True)
    pipeline.hdel(keys.DEAD, *ids)
    pipeline.zrem(keys.DEAD_AT, *ids)
    pipeline.delete(*(keys.LOG + run_id for run_id in ids))
    await pipeline.execute()


async def _letters(
    redis: Redis, ids: tuple[str, ...] | None, problems: list[KeyProblem] | None = None
) -> AsyncIterator[DeadLetter]:
    """Read letters a few at a time: there may be many, and tracebacks are long."""
    if ids is not None:
        for run_id in ids:
            raw = await cast(Awaitable[bytes | None], redis.hget(keys.DEAD, run_id))
            if raw is not None and (letter := DeadLetter.read(run_id, raw)) is not None:
                yield letter
        return
    seen: set[bytes] = set()  # SCAN may return a field twice
    async for name, raw in redis.hscan_iter(keys.DEAD, count=_AT_ONCE):
        if name in seen:
            continue
        seen.add(name)
        letter = DeadLetter.read(name.decode(errors="replace"), raw)
        if letter is not None:
            yield letter
        elif problems is not None and len(problems) < _MOST_PROBLEMS:
            problems.append(wrong_value(keys.DEAD, raw, field=name))


def _newest(letters: list[DeadLetter], limit: int | None) -> list[DeadLetter]:
    return sorted(letters, key=lambda letter: letter.at, reverse=True)[:limit]
