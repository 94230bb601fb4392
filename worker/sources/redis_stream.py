"""`RedisStream`: the entries of a stream of Redis, acknowledged after the commit.

The consumer's name holds the run and the step. So the ledger can tell which of the entries that are pending for a
consumer were committed: those up to the cursor of its step. They are acknowledged later, and not processed again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, unquote

from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, RedisError, ResponseError
from sqlalchemy import text

from worker.batch.source import Bounds, OpenStep, Page, RejectedRow
from worker.batch.transaction import BatchTransaction
from worker.errors import CursorMismatch, InvalidRow, SourceUnavailable, UsageError
from worker.settings import parse_redis_url

logger = logging.getLogger("longhaul.sources")

_CONSUMER = "longhaul"
_PENDING = 1_000  # entries that are looked at in one command
_ENDED_RUNS = text(
    "SELECT step.name, step.cursor #>> '{}' AS cursor "
    "FROM worker.run LEFT JOIN worker.step ON step.run_id = run.id "
    "WHERE run.id = :run AND run.finished_at IS NOT NULL FOR SHARE OF run"  # the lock prevents a retry meanwhile
)


@dataclass(frozen=True)
class StreamEntry:
    """An entry of a stream.

    Attributes:
        id: Its id, such as "1700000000000-0".
        fields: Its fields, as texts. An entry with a field that is not UTF-8 is invalid, and can be quarantined.
    """

    id: str
    fields: Mapping[str, str]


class RedisStream:
    """The entries of a stream for a group: `ctx.walk(RedisStream("orders", "import"))`.

    The walk ends behind the last entry that the stream had when the walk began. An entry takes effect exactly once: it
    is acknowledged after the commit, and if the worker dies in between, the ledger knows that the entry is done.
    Entries that a run has taken and not committed when it ended for good are taken by the next run.

    Args:
        key: The key of the stream.
        group: The consumer group, which is created if it does not exist, at the beginning of the stream.
        redis: The connection. Default: a connection to the Redis of the settings. With Sentinel, pass `ctx.redis`.

    Raises:
        SourceUnavailable: Redis cannot be reached, or the key is no stream.
        CursorMismatch: The group was removed while the run was under way.
    """

    kind = "redis"

    def __init__(self, key: str, group: str, *, redis: Any = None) -> None:
        self._key = key
        self._group = group
        self._redis = redis
        self._is_own = redis is None
        self.fingerprint = f"{key} group={group}"
        self._consumer = ""
        self._last: tuple[int, int] = (0, 0)
        self._taken: str | None = None  # the last entry taken; None if some may be pending that were not handed out
        self._only: list[list[Any]] | None = None
        self._delivered: str | None = None  # of a trial, which takes no entries: the last one that the group has taken

    async def open(self, step: OpenStep) -> Bounds:
        """Create the group, and settle what earlier attempts and runs have taken."""
        if self._is_own:
            place = parse_redis_url(step.settings.redis.url)
            if place.cluster:
                raise UsageError("RedisStream: pass redis=RedisCluster(...), because redis.url names a cluster")
            if place.sentinels is not None:
                raise UsageError("RedisStream: pass redis=ctx.redis, because redis.url names Sentinels")
            limit = step.settings.redis
            self._redis = Redis.from_url(
                place.url,
                socket_connect_timeout=limit.connect_timeout_seconds,
                socket_timeout=limit.command_timeout_seconds,
            )
        self._taken = self._delivered = None
        self._consumer = f"{_CONSUMER}:{step.run_id}:{quote(step.name, safe='')}"
        self._only = step.only_keys
        if self._only is not None:
            return Bounds(total=len(self._only))
        try:
            if step.is_trial:
                return await self._look()
            return await self._open_group(step)
        except RedisError as error:
            raise self._unavailable(error) from error

    async def _open_group(self, step: OpenStep) -> Bounds:
        if step.cursor is None:
            await self._create_group()
        else:
            await self._ensure_group(step)
        if step.is_new:
            await self._take_over_ended(step)
            info = await self._redis.xinfo_stream(self._key)
            last = _text(info["last-generated-id"])
        else:
            last = str(step.last)
            if step.cursor is not None:
                await self._acknowledge_committed(self._consumer, step.cursor)
        self._last = _parse(last)
        return Bounds(last=last)

    async def _look(self) -> Bounds:
        """Find the place of the group, without an entry taken, for a trial."""
        self._delivered = "0-0"
        if not await self._redis.exists(self._key):
            return Bounds(is_empty=True)
        for group in await self._redis.xinfo_groups(self._key):
            if _text(group["name"]) == self._group:
                self._delivered = _text(group["last-delivered-id"])
        return Bounds()

    async def _create_group(self) -> None:
        try:
            await self._redis.xgroup_create(self._key, self._group, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise

    async def _ensure_group(self, step: OpenStep) -> None:
        """Raise `CursorMismatch` if the group has gone: a new one would deliver entries that are done."""
        try:
            await self._redis.xinfo_consumers(self._key, self._group)
        except ResponseError as error:
            if "NOGROUP" not in str(error) and "no such key" not in str(error):
                raise
            raise CursorMismatch(
                f"the group {self._group} of the stream {self._key} was removed while the run was under way, and with "
                f"it the record of which entries are done. To continue behind the last entry of this run, create it: "
                f"XGROUP CREATE {self._key} {self._group} {step.cursor} MKSTREAM, and: worker retry {step.run_id}. "
                f"To process all entries again: worker retry {step.run_id} --from-start"
            ) from None

    async def _take_over_ended(self, step: OpenStep) -> None:
        """Acknowledge what ended runs have committed, and take what they have not."""
        for consumer in await self._redis.xinfo_consumers(self._key, self._group):
            name = _text(consumer["name"])
            prefix, _, rest = name.partition(":")
            if prefix != _CONSUMER or name == self._consumer or not consumer["pending"]:
                continue
            run, _, step_name = rest.rpartition(":")
            steps = (await step.connection.execute(_ENDED_RUNS, {"run": run})).all()
            if not steps:
                continue  # it runs, or the ledger has forgotten it, and with it whether its entries were committed
            cursor = next((row.cursor for row in steps if row.name == unquote(step_name)), None)
            if cursor is not None:
                await self._acknowledge_committed(name, cursor)
            while pending := await self._list_pending(name, "+"):
                await self._redis.xclaim(self._key, self._group, self._consumer, 0, pending, justid=True)
            await self._delete_consumer(name)

    async def _delete_consumer(self, name: str) -> None:
        """Delete a consumer that has no pending entries: each run has its own, so the group would grow with each."""
        if await self._list_pending(name, "+"):
            return
        try:
            await self._redis.xgroup_delconsumer(self._key, self._group, name)
        except NoPermissionError:  # the user has only the rights that an older version needs
            logger.info("consumer not deleted, which needs +xgroup|delconsumer: key=%s consumer=%s", self._key, name)

    async def _acknowledge_committed(self, consumer: str, cursor: str) -> None:
        while pending := await self._list_pending(consumer, cursor):
            await self._redis.xack(self._key, self._group, *pending)

    async def _list_pending(self, consumer: str, end: str) -> list[str]:
        found = await self._redis.xpending_range(
            self._key, self._group, min="-", max=end, count=_PENDING, consumername=consumer
        )
        return [_text(entry["message_id"]) for entry in found]

    async def fetch(self, transaction: BatchTransaction, cursor: Any, size: int) -> Page[StreamEntry] | None:
        """Return the next entries."""
        try:
            if self._only is not None:
                return await self._fetch_retried(cursor or 0)
            if self._delivered is not None:
                behind = f"({cursor or self._delivered}"
                looked = await self._redis.xrange(self._key, behind, "+", count=size)
                return self._make_page([(_text(id_), fields) for id_, fields in looked]) if looked else None
            found = await self._read_next(cursor, size)
            if not found:
                await self._delete_consumer(self._consumer)
        except RedisError as error:
            self._taken = None  # the command may have taken entries, and only its answer is lost
            raise self._unavailable(error) from error
        return self._make_page(found) if found else None

    async def _read_next(self, cursor: Any, size: int) -> list[tuple[str, dict[bytes, bytes] | None]]:
        """Return the entries behind a cursor: first those that are pending, then new ones, which have larger ids."""
        # Earlier attempts or ended runs have taken the pending ones, or a batch before has failed.
        if (self._taken is None or self._taken != cursor) and (found := await self._read(cursor or "0", size)):
            return found
        if cursor is not None and _parse(cursor) >= self._last:
            return []
        found = await self._read(">", size)
        while found and cursor is not None and _parse(found[0][0]) <= _parse(cursor):
            # The group was made again, or set back, while the run was under way: these entries are done.
            done = [id_ for id_, _ in found if _parse(id_) <= _parse(cursor)]
            await self._redis.xack(self._key, self._group, *done)
            found = found[len(done) :] or await self._read(">", size)
        first = await self._read(cursor or "0", 1)
        if [id_ for id_, _ in first] != [id_ for id_, _ in found[:1]]:
            # The client has sent a command again, whose answer was lost: the entries that it took come first.
            self._taken = None
            return await self._read(cursor or "0", size)
        self._taken = found[-1][0] if found else None
        return found

    async def _read(self, place: str, size: int) -> list[tuple[str, dict[bytes, bytes] | None]]:
        answer = await self._redis.xreadgroup(self._group, self._consumer, {self._key: place}, count=size)
        if not answer:
            return []
        entries = answer[0][1] if isinstance(answer, list) else next(iter(answer.values()))[0]
        return [(_text(id_), fields) for id_, fields in entries]

    def _make_page(self, found: list[tuple[str, dict[bytes, bytes] | None]]) -> Page[StreamEntry]:
        trimmed = [id_ for id_, fields in found if not fields]
        if trimmed:  # XTRIM or XDEL has removed them after they were taken
            logger.warning("entries were deleted from the stream: key=%s entries=%d", self._key, len(trimmed))
        rows: list[StreamEntry] = []
        rejected: list[RejectedRow] = []
        for id_, fields in found:
            try:
                rows += [self._make_entry(id_, fields)] if fields else []
            except InvalidRow as error:
                shown = {_text(name): _text(value) for name, value in (fields or {}).items()}
                rejected.append(RejectedRow([id_], error, shown))
        ids = [id_ for id_, _ in found]
        return Page(
            rows,
            ids[-1],
            examined=len(ids),
            rejected=rejected,
            first_key=(ids[0],),
            last_key=(ids[-1],),
            row_keys=lambda: [[row.id] for row in rows],
            after_commit=self._make_acknowledgement(ids),
        )

    def _make_entry(self, id_: str, fields: Mapping[bytes, bytes]) -> StreamEntry:
        """Return an entry.

        Raises:
            InvalidRow: A field is no text.
        """
        try:
            return StreamEntry(id_, {_decode(name): _decode(value) for name, value in fields.items()})
        except UnicodeDecodeError as error:
            raise InvalidRow(f"the stream {self._key}, entry {id_}: a field is not UTF-8: {error.reason}") from error

    def _make_acknowledgement(self, ids: list[str]) -> Callable[[], Any]:
        async def acknowledge() -> None:
            try:
                await self._redis.xack(self._key, self._group, *ids)
            except RedisError as error:  # the next attempt or run acknowledges them by the cursor
                logger.warning("cannot acknowledge entries: key=%s entries=%d error=%s", self._key, len(ids), error)

        return acknowledge

    async def _fetch_retried(self, number: int) -> Page[StreamEntry] | None:
        """Return one entry of those that were quarantined. The cursor is their number."""
        assert self._only is not None  # noqa: S101
        if number >= len(self._only):
            return None
        id_ = str(self._only[number][0])
        found = await self._redis.xrange(self._key, id_, id_)
        if not found:
            raise InvalidRow(f"the stream {self._key} has no entry {id_} any more: it was trimmed or deleted")
        row = self._make_entry(id_, found[0][1])
        return Page([row], number + 1, first_key=(id_,), last_key=(id_,), row_keys=lambda: [[id_]])

    def _unavailable(self, error: RedisError) -> SourceUnavailable:
        reason = str(error) or type(error).__name__
        return SourceUnavailable(
            f"the stream {self._key} cannot be read: {reason}. The run continues with its next attempt"
        )

    async def close(self) -> None:
        """Close the source's own connection."""
        if self._is_own and self._redis is not None:
            await self._redis.aclose()


def _decode(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value  # a connection with decode_responses gives texts


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _parse(id_: str) -> tuple[int, int]:
    milliseconds, _, number = id_.partition("-")
    return int(milliseconds), int(number or 0)
