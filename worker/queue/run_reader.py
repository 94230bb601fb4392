"""Reads the keys of runs, and waits until one of them is written."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from typing import TYPE_CHECKING, TypeVar

from redis.asyncio import Redis
from redis.exceptions import DataError, RedisError, ResponseError

from worker.errors import CorruptKey, InvalidArguments, InvalidPayload, UsageError
from worker.job.propagation import looking_command
from worker.queue.home_loop import HomeLoop
from worker.queue.invalidations import InvalidationListener
from worker.queue.key_problems import wrong_type
from worker.queue.outage_log import unavailable
from worker.queue.store import QueueStore

if TYPE_CHECKING:
    from worker.settings import Settings

T = TypeVar("T")


class RunReader:
    """The part of a client that `Run` and `Group` use.

    Args:
        settings: the settings of Redis.
        redis: connection that returns bytes.
        listens: whether to open two more connections, over which Redis sends a message when a key is written. Without
            them, a caller that waits for a key polls it.
    """

    def __init__(self, settings: Settings, redis: Redis, *, listens: bool) -> None:
        self._settings = settings
        self.redis = redis
        self.store = QueueStore(redis)
        self._listens = listens
        self._listener: InvalidationListener | None = None
        self._waiting: dict[str, asyncio.Event] = {}
        self._home = HomeLoop()

    async def close(self) -> None:
        """Close the two connections that listen."""
        if self._listener is not None:
            self._enter()
        listener, self._listener = self._listener, None
        if listener is not None:
            await listener.stop()

    async def look(self, key: str) -> tuple[bytes | None, asyncio.Event | None]:
        """Return a string of Redis, and an event that is set when the key is written; None if the caller must poll.

        Raises:
            ServerUnavailable: Redis does not answer.
        """
        if self._listens:
            self._enter()
        if self._listener is None and self._listens:
            self._listener = InvalidationListener(self._settings)
            await self._listener.start(self._written)
        if self._listener is not None and self._listener.active:
            event = self._waiting.setdefault(key, asyncio.Event())
            event.clear()
            try:
                [raw] = await asyncio.shield(self._listener.read(("GET", key)))
            except RedisError:
                pass  # the plain command below raises the error
            else:
                if isinstance(raw, ResponseError):
                    raise InvalidPayload(str(wrong_type(key).in_namespace(self._settings.redis.prefix)))
                if raw is not None:
                    self._waiting.pop(key, None)
                return raw, event
        return await self.command(self.redis.get(key)), None

    def _enter(self) -> None:
        if self._home.moves(self._listener, self._waiting):
            self._listener, self._waiting = None, {}

    def _written(self, names: frozenset[str] | None) -> None:
        for key in list(self._waiting) if names is None else names & self._waiting.keys():
            self._waiting[key].set()

    async def command(self, operation: Awaitable[T]) -> T:
        """Await a command of Redis.

        Raises:
            CorruptKey: a key has another type.
            InvalidArguments: Redis has no form for a name or a value.
            ServerUnavailable: Redis does not answer, or rejects the command.
            UsageError: `worker plan` or `worker try` runs the job that sends it.
        """
        if looking := looking_command.get():
            if isinstance(operation, Coroutine):
                operation.close()
            raise UsageError(f"{looking} sends nothing to the queue, and the job enqueues or steers runs here")
        try:
            return await operation
        except UnicodeEncodeError as error:
            raise InvalidArguments(f"{error.object[:100]!r} has half of a surrogate pair: give a valid text") from error
        except DataError as error:
            raise InvalidArguments(f"a name or a value is no text and no number: {error}") from error
        except ResponseError as error:
            if "WRONGTYPE" in str(error):
                raise CorruptKey(f"{error}; `worker doctor` lists keys of a wrong type") from error
            raise unavailable(self._settings, error, "start Redis there, or set REDIS_URL") from error
        except (RedisError, OSError) as error:
            raise unavailable(self._settings, error, "start Redis there, or set REDIS_URL") from error
