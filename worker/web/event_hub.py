"""The hub of events: one reader of `worker:events` and of the mirrors for all subscribers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, cast

from redis.asyncio import Redis
from redis.exceptions import RedisError

from worker.cancellation import cancel_and_wait
from worker.errors import LonghaulError
from worker.queue import keys
from worker.queue.client import Client
from worker.queue.connection import connection_pool
from worker.queue.overview import describe_workers
from worker.queue.run import decode_fields
from worker.settings import Settings
from worker.web.run_cache import RunCache

logger = logging.getLogger("longhaul.web")

#: Messages that wait for a subscriber. One that does not read so many is dropped; it may come back for the rest.
_QUEUE = 2_000
_PAGE = 500
_BLOCK_MS = 1_000
_AWAY_SECONDS = 1.0
#: Longest wait of a new subscriber for the reader to find the end of the stream.
_PLACE_SECONDS = 5.0
_PROGRESS_SECONDS = 0.5
_MOST_RUNS = 200
#: Each half of an id has 64 bits. Redis has no range behind the last id.
_LARGEST = 2**64 - 1
LAST_PLACE = (_LARGEST, _LARGEST)
_ID = re.compile(r"\d{1,20}-\d{1,20}", re.ASCII)


Progress = Literal["none", "pulse", "full"]


class Message(NamedTuple):
    """A message for a subscriber.

    Attributes:
        kind: `event` for an entry of the stream, `progress` for the mirror of a run, `gap` if entries are gone, `pulse`
            if a worker with runs has written.
        id: the id in the stream; empty for others.
        fields: the fields of the entry or of the mirror.
        run_id: the run that it is about; empty for none.
    """

    kind: str
    id: str
    fields: dict[str, str]
    run_id: str = ""


@dataclass(eq=False)
class Subscriber:
    """A stream of events that is open.

    Attributes:
        run_id: only messages about this run; None for all.
        progress: `full` if it takes the progress of runs as well, `pulse` if it takes that there is some, `none`.
        queue: its messages.
        is_dropped: whether it was too slow, or the server ends: no message follows those of the queue.
    """

    run_id: str | None
    progress: Progress
    queue: asyncio.Queue[Message | None] = field(default_factory=lambda: asyncio.Queue(_QUEUE))
    is_dropped: bool = False

    def put(self, message: Message) -> None:
        """Add a message, or drop the subscriber if it is too slow."""
        if self.is_dropped or (self.run_id is not None and message.run_id != self.run_id):
            return
        try:
            self.queue.put_nowait(message)
        except asyncio.QueueFull:
            self.drop()
            logger.info("subscriber dropped messages=%d: it reads too slowly", _QUEUE)

    def drop(self) -> None:
        """End the stream: no message of the queue is sent any more, and the client comes back for the rest."""
        self.is_dropped = True
        while not self.queue.empty():
            self.queue.get_nowait()
        self.queue.put_nowait(None)


class EventHub:
    """Reads the stream of events and the mirrors while there are subscribers.

    Args:
        client: the client of the queue.
        settings: the settings of Redis.
        runs: is told which runs have changed.
    """

    def __init__(self, client: Client, settings: Settings, runs: RunCache) -> None:
        self._client = client
        self._settings = settings
        self._runs = runs
        self._subscribers: set[Subscriber] = set()
        self._tasks: list[asyncio.Task[None]] = []
        self._has_place = asyncio.Event()  # the reader of the stream knows where it begins
        self._seen: dict[str, dict[str, str]] = {}  # the mirror of each run as it was sent last
        self._running: list[str] = []
        self._written: dict[str, Any] = {}  # when each worker with runs has written last
        self.is_closed = False

    @property
    def count(self) -> int:
        """The number of subscribers."""
        return len(self._subscribers)

    @asynccontextmanager
    async def subscribe(self, run_id: str | None = None, *, progress: Progress = "none") -> AsyncIterator[Subscriber]:
        """Subscribe for the time of a block. No event after its begin is missed.

        Args:
            run_id: only messages about this run; None for all.
            progress: `full` adds the progress of the run, or of all running runs; `pulse` only that they have some.
        """
        subscriber = Subscriber(run_id, progress)
        if self.is_closed:  # `end` came between the check of the request and this line
            subscriber.drop()
        self._subscribers.add(subscriber)
        if not self._tasks:
            self._has_place = asyncio.Event()
            self._tasks = [
                asyncio.create_task(self._read_events(self._has_place), name="web events"),
                asyncio.create_task(self._read_progress(), name="web progress"),
            ]
        try:
            with contextlib.suppress(TimeoutError):  # Redis does not answer: the stream begins when it does
                async with asyncio.timeout(_PLACE_SECONDS):
                    await self._has_place.wait()
            yield subscriber
        finally:
            self._subscribers.discard(subscriber)
            if not self._subscribers:
                await self._stop()

    def end(self) -> None:
        """End all streams. One that begins later ends at once."""
        self.is_closed = True
        for subscriber in list(self._subscribers):
            subscriber.drop()

    async def close(self) -> None:
        """End all streams, and the reader."""
        self.end()
        await self._stop()

    async def _stop(self) -> None:
        tasks, self._tasks = self._tasks, []
        self._seen.clear()
        self._written.clear()
        await cancel_and_wait(*tasks)

    # --- events

    async def replay(self, last_id: str, run_id: str | None) -> AsyncIterator[Message]:
        """Yield the events after an id, until now; first a `gap` if entries after it are gone.

        Args:
            last_id: the id of the last event that the client has.
            run_id: only events of this run; None for all.
        """
        redis = self._client.redis
        oldest = await self._client.command(redis.xrange(keys.EVENTS, count=1))
        if oldest and order_of(last_id) < order_of(oldest[0][0].decode()) and last_id != "0-0":
            yield Message("gap", "", {"after": last_id})
        place = last_id
        while order_of(place) < LAST_PLACE:
            page = await self._client.command(redis.xrange(keys.EVENTS, min=f"({place}", count=_PAGE))
            if not page:
                return
            for name, raw in page:
                message = decode_event(name, raw)
                if run_id is None or message.run_id == run_id:
                    yield message
            place = page[-1][0].decode()

    async def _read_events(self, has_place: asyncio.Event) -> None:
        """Read the stream from its end, over a connection of its own, whose reads wait."""
        redis = Redis.from_pool(connection_pool(self._settings))
        limit_ms = round(self._settings.redis.command_timeout_seconds * 500)
        last: Any = "$"
        try:
            while not _is_cancelled():
                try:
                    if last == "$":  # a fixed place, so that nothing between two reads is missed
                        end = await redis.xrevrange(keys.EVENTS, count=1)
                        last = end[0][0] if end else "0-0"
                        has_place.set()
                    self._runs.begin()
                    found = await redis.xread({keys.EVENTS: last}, count=_PAGE, block=max(1, min(_BLOCK_MS, limit_ms)))
                except (RedisError, OSError) as error:
                    logger.debug("events cannot be read error=%s", error)
                    self._runs.end()
                    await asyncio.sleep(_AWAY_SECONDS)
                    continue
                for name, raw in found[0][1] if found else ():
                    self._send(decode_event(name, raw))
                    last = name
        finally:
            self._runs.end()
            await redis.aclose()

    def _send(self, message: Message) -> None:
        self._runs.forget(message.run_id)
        for subscriber in list(self._subscribers):
            subscriber.put(message)

    # --- progress

    async def _read_progress(self) -> None:
        """Send the mirrors of the runs that subscribers watch, when they have changed."""
        while not _is_cancelled():
            with contextlib.suppress(RedisError, LonghaulError, OSError):
                await self._read_workers()
                await self._read_mirrors()
            await asyncio.sleep(_PROGRESS_SECONDS)

    async def _read_workers(self) -> None:
        """Send a pulse if a worker with runs has written since the last time: it writes their mirrors at once."""
        watching = [one for one in self._subscribers if one.run_id is None and one.progress != "none"]
        if not watching:
            return
        raw = await self._client.command(cast(Awaitable[Any], self._client.redis.hgetall(keys.WORKERS)))
        workers = describe_workers(raw, self._settings.worker.lease_seconds, datetime.now(UTC))
        self._running = [run_id for worker in workers.values() for run_id in worker["jobs"]][:_MOST_RUNS]
        written = {name: worker["seen_at"] for name, worker in workers.items() if worker["jobs"]}
        if written != self._written:
            self._written = written
            self._put(Message("pulse", "", {}), [one for one in watching if one.progress == "pulse"])

    async def _read_mirrors(self) -> None:
        watching = [one for one in self._subscribers if one.progress == "full"]
        run_ids = dict.fromkeys(one.run_id for one in watching if one.run_id is not None)
        if any(one.run_id is None for one in watching):
            run_ids |= dict.fromkeys(self._running)
        pipeline = self._client.redis.pipeline(transaction=False)
        chosen = list(run_ids)[: _MOST_RUNS + len(watching)]
        for run_id in chosen:
            pipeline.hgetall(keys.RUN + run_id)
        answers = await pipeline.execute(raise_on_error=False) if chosen else []
        for run_id, raw in zip(chosen, answers, strict=True):
            fields = decode_fields(raw) if isinstance(raw, dict) else {}
            if fields and self._seen.get(run_id) != fields:
                self._seen[run_id] = fields
                self._put(Message("progress", "", fields, run_id), watching)
        self._seen = {run_id: fields for run_id, fields in self._seen.items() if run_id in run_ids}

    @staticmethod
    def _put(message: Message, subscribers: Iterable[Subscriber]) -> None:
        for subscriber in subscribers:
            subscriber.put(message)


def _is_cancelled() -> bool:
    """Return whether this task was cancelled: redis-py may swallow a cancellation that meets its own time limit."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def is_event_id(text: str) -> bool:
    """Return whether a text is the id of an entry of the stream."""
    return _ID.fullmatch(text) is not None and max(order_of(text)) <= _LARGEST


def order_of(event_id: str) -> tuple[int, int]:
    """Return the place of an event in the stream."""
    milliseconds, _, number = event_id.partition("-")
    return int(milliseconds), int(number)


def decode_event(name: bytes, raw: Any) -> Message:
    """Return an entry of the stream."""
    fields = decode_fields(raw) if isinstance(raw, dict) else {}
    return Message("event", name.decode(), fields, fields.get("run", ""))
