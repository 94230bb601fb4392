"""Repeats a step until its server accepts it, so that the end of a job survives an outage of Redis or PostgreSQL."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from itertools import chain, repeat
from typing import Any, TypeVar

from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from worker.db.errors import is_unavailable
from worker.queue.outage_log import OutageLog

T = TypeVar("T")

_DATABASE_PAUSES = (0.2, 0.5, 1.0, 2.0, 4.0)
#: No further repetition after this time: a connection into a black hole fails only after its timeout.
_DATABASE_SECONDS = 15.0
_REDIS_PAUSES = (0.2, 0.5, 1.0)


@dataclass
class WorkerState:
    """The state that all parts of one worker share.

    Attributes:
        name: the name of the worker, as operators see it.
        is_shutdown_forced: whether it stops at once and waits for no server.
        free_slots: number of jobs that it could claim when it last looked.
        drain_started: set when the worker starts to drain.
        fruitless_claims: number of claims that could not run here: of unknown or paused jobs, or without a payload.
        main: the task that runs the worker; None before it runs.
    """

    name: str
    is_shutdown_forced: bool = False
    fruitless_claims: int = 0
    free_slots: int = 0
    main: asyncio.Task[Any] | None = None
    drain_started: threading.Event = field(default_factory=threading.Event)

    @property
    def is_draining(self) -> bool:
        """Whether the worker is draining: jobs return to the queue at their next boundary."""
        return self.drain_started.is_set()

    @property
    def is_cancelled(self) -> bool:
        """Whether the worker's own task was cancelled or has ended: the event loop then cancels the jobs, too."""
        return self.main is None or self.main.done() or self.main.cancelling() > 0


class ServerRetry:
    """Repeats steps while their server is unavailable. Each step has to be idempotent.

    Args:
        state: the state of the worker; a forced shutdown ends the repetition.
        outage: logs outages of Redis.
    """

    def __init__(self, state: WorkerState, outage: OutageLog) -> None:
        self.state = state
        self._outage = outage

    async def redis(self, name: str, operation: Callable[[], Awaitable[T]]) -> T:
        """Repeat a step until Redis accepts it.

        Args:
            name: the name of the job, for the log.
            operation: the step.

        Raises:
            RedisError: the shutdown is forced and Redis does not answer.
        """
        try:
            return await operation()
        except RedisError as error:
            return await self._repeat(f"{name} has to wait", operation, error)

    async def _repeat(self, who: str, operation: Callable[[], Awaitable[T]], error: RedisError) -> T:
        try:
            for pause in chain(_REDIS_PAUSES, repeat(_REDIS_PAUSES[-1])):
                if self.state.is_shutdown_forced:
                    raise error
                self._outage.failed(who, error)
                await asyncio.sleep(pause)
                try:
                    return await operation()
                except RedisError as again:
                    error = again
            raise AssertionError
        finally:
            self._outage.answered(who)

    async def database(self, operation: Callable[[], Awaitable[T]]) -> T:
        """Repeat a step of the ledger for some seconds while PostgreSQL is unavailable.

        Raises:
            SQLAlchemyError: the step failed for another reason, or PostgreSQL is still unavailable.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _DATABASE_SECONDS
        for pause in _DATABASE_PAUSES:
            try:
                return await operation()
            except (SQLAlchemyError, OSError) as error:
                if not is_unavailable(error) or loop.time() > deadline:
                    raise
                await asyncio.sleep(pause)
        return await operation()
