"""Commands without an event loop: the coroutines of the client, over redis-py's synchronous connections.

Every command of the queue is a coroutine whose only awaits are answers of Redis. `BlockingRedis` has the methods of
redis-py's asynchronous client, but its coroutines block until the answer is there and never suspend. So
`run_without_loop` runs such a coroutine to its end with a single `send`, in the thread of its caller.
"""

from __future__ import annotations

from collections.abc import Coroutine
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

import redis as blocking
from redis.asyncio import Redis
from redis.commands import AsyncCoreCommands
from redis.connection import ConnectionPool, UnixDomainSocketConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from worker.errors import UsageError
from worker.queue.cluster import make_blocking_cluster_class
from worker.queue.connection import ConnectionKinds, make_pool
from worker.queue.namespace import make_blocking_namespaced_class
from worker.queue.outage_log import kind_of
from worker.queue.sentinel import SentinelGroup

if TYPE_CHECKING:
    from worker.settings import Settings

T = TypeVar("T")

_SUSPENDED = (
    "SyncClient has no event loop, and a hook of its middleware awaits something other than `proceed()`: use the "
    "asynchronous Client, or pass SyncClient(middleware=[])"
)


def run_without_loop(operation: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine over `BlockingRedis` to its end.

    Raises:
        UsageError: it waits for something else, which only an event loop could deliver.
    """
    try:
        while operation.send(None) is None:
            pass  # asyncio.sleep(0): other tasks could run here
    except StopIteration as ended:
        return cast(T, ended.value)
    except RuntimeError as error:
        if str(error) == "no running event loop":
            raise UsageError(_SUSPENDED) from error
        raise
    finally:
        operation.close()
    raise UsageError(_SUSPENDED)


class _BlockingCommands(AsyncCoreCommands):
    """The commands of redis-py's asynchronous client, over a synchronous one that returns bytes."""

    def __init__(self, redis: blocking.Redis) -> None:
        self._redis = redis
        self.connection_pool = redis.connection_pool  # scripts ask it for the encoder


class BlockingRedis(_BlockingCommands):
    """Sends commands and waits for their answers in the calling thread. Safe to use from several threads."""

    async def execute_command(self, *arguments: Any, **options: Any) -> Any:
        """Send a command and return its answer."""
        return self._redis.execute_command(*arguments, **options)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: bool = True) -> BlockingPipeline:
        """Return a pipeline."""
        return BlockingPipeline(self._redis, self._redis.pipeline(transaction=transaction))


class BlockingPipeline(_BlockingCommands):
    """Collects commands, and sends them at once.

    Args:
        redis: the client.
        pipeline: a pipeline of redis-py over it.
    """

    def __init__(self, redis: blocking.Redis, pipeline: Any) -> None:
        super().__init__(redis)
        self._pipeline = pipeline

    def execute_command(self, *arguments: Any, **options: Any) -> BlockingPipeline:
        """Add a command."""
        self._pipeline.execute_command(*arguments, **options)
        return self

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        """Send the commands and return their answers."""
        answers: list[Any] = self._pipeline.execute(raise_on_error=raise_on_error)
        return answers

    def __len__(self) -> int:
        return len(self._pipeline)

    def __bool__(self) -> bool:
        return True


def as_async(redis: blocking.Redis) -> Redis:
    """Return a synchronous client under the interface of an asynchronous one, for `run_without_loop`."""
    return cast(Redis, BlockingRedis(redis))


# --- connections


def blocking_pool(settings: Settings, *, command_timeout: float | None = None) -> ConnectionPool:
    """Return a pool of synchronous connections, the twin of `connection_pool`. Send nothing.

    Args:
        settings: the settings of Redis.
        command_timeout: longest wait for an answer, in seconds; `redis.command_timeout_seconds` by default.
    """
    pool: ConnectionPool = make_pool(
        settings,
        ConnectionPool,
        unix_class=UnixDomainSocketConnection,
        kinds=ConnectionKinds(
            _make_connection_class, _make_sentinel_class, make_blocking_cluster_class, make_blocking_namespaced_class
        ),
        command_timeout=command_timeout,
    )
    return pool


@cache
def _make_connection_class(plain: Any) -> Any:
    """Return a class of connections that are not used again after their server has rejected writes."""

    class LonghaulConnection(plain):  # type: ignore[misc]
        refused = False

        def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            if self.refused:
                self.disconnect()
            super().send_packed_command(command, check_health)

        def on_connect(self) -> None:
            self.refused = False
            super().on_connect()

        def read_response(self, *args: Any, **options: Any) -> Any:
            try:
                return super().read_response(*args, **options)
            except ResponseError as error:
                if kind_of(error) == "READONLY":
                    self.refused = True
                raise

    return LonghaulConnection


@cache
def _make_sentinel_class(plain: Any) -> Any:
    """Return a class of connections to the primary that the Sentinels name; see sentinel.py."""

    class SentinelConnection(plain):  # type: ignore[misc]
        def __init__(self, *, sentinels: SentinelGroup, **options: Any) -> None:
            super().__init__(**options)
            self._sentinels = sentinels

        def _connect(self) -> Any:
            self.host, self.port = self._sentinels.primary_blocking()
            return super()._connect()

        def on_connect(self) -> None:
            super().on_connect()
            self.send_command("ROLE")
            [role, *_] = self.read_response()
            if role != b"master":
                raise RedisConnectionError(f"{self.host}:{self.port} is not a primary, although the Sentinels name it")

    return SentinelConnection
