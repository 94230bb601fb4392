"""Sentinels: processes that monitor which of several servers is the primary, and promote another one if it fails.

Each new connection asks the Sentinels. A connection is reopened if it ends, or if its server rejects writes.
https://redis.io/docs/latest/develop/reference/sentinel-clients/

Longhaul does not use redis-py's own `Sentinel(...).master_for()` for three reasons. Its connections have a class of
their own, and Longhaul's pack commands in C. It does not check the ROLE of a new connection, and a Sentinel may still
name a server that was demoted. The thread that renews the leases needs the same answer without an event loop.
"""

from __future__ import annotations

from functools import cache
from typing import Any
from urllib.parse import urlsplit

import redis as blocking
from redis.asyncio import ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from worker.settings import Sentinels


class SentinelGroup:
    """The Sentinels of one primary. The one that answered last is asked first.

    Args:
        sentinels: the URLs of the Sentinels, and the name of the primary.
        seconds: longest wait for one Sentinel, in seconds.
    """

    def __init__(self, sentinels: Sentinels, seconds: float) -> None:
        self.urls = list(sentinels.urls)
        self._question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", sentinels.service)
        self._service = sentinels.service
        self._seconds = seconds

    async def primary(self) -> tuple[str, int]:
        """Return host and port of the primary.

        Raises:
            RedisError: no Sentinel answers, or none has a primary of this name.
        """
        errors: dict[str, BaseException] = {}
        for url in self.urls:
            pool: ConnectionPool = ConnectionPool.from_url(
                url, socket_connect_timeout=self._seconds, socket_timeout=self._seconds
            )
            connection: Any = pool.make_connection()  # type: ignore[no-untyped-call]
            try:
                await connection.connect()
                await connection.send_command(*self._question)
                found = await connection.read_response()
            except (RedisError, OSError) as error:
                errors[url] = error
                continue
            finally:
                await connection.disconnect(nowait=True)
            if found:
                return self._known(url, found)
        raise self._unknown(errors)

    def primary_blocking(self) -> tuple[str, int]:
        """Return host and port of the primary; for use in a thread."""
        errors: dict[str, BaseException] = {}
        for url in self.urls:
            limits: dict[str, Any] = {"socket_connect_timeout": self._seconds, "socket_timeout": self._seconds}
            try:
                with blocking.Redis.from_url(url, **limits) as sentinel:
                    found: Any = sentinel.execute_command(*self._question)
            except RedisError as error:
                errors[url] = error
                continue
            if found:
                return self._known(url, found)
        raise self._unknown(errors)

    def _known(self, url: str, found: Any) -> tuple[str, int]:
        # A new list, because the event loop and the thread of the leases both iterate over it.
        self.urls = sorted(self.urls, key=lambda other: other != url)
        return found[0].decode(), int(found[1])

    def _unknown(self, errors: dict[str, BaseException]) -> RedisError:
        reasons = [
            f"{urlsplit(url).netloc.rpartition('@')[2]}: {str(error).rstrip('.')}" for url, error in errors.items()
        ]
        why = "; ".join(reasons) or "they answer, but do not monitor it"
        return RedisConnectionError(f"no Sentinel knows the primary of {self._service}: {why}")


@cache
def sentinel_group(sentinels: Sentinels, seconds: float) -> SentinelGroup:
    """Return the group that all connections of this process share; `seconds` is the longest wait for one Sentinel."""
    return SentinelGroup(sentinels, seconds)


@cache
def make_sentinel_connection_class(plain: Any) -> Any:
    """Return a class of connections to the primary that the Sentinels name."""

    class SentinelConnection(plain):  # type: ignore[misc]
        def __init__(self, *, sentinels: SentinelGroup, **options: Any) -> None:
            super().__init__(**options)
            self._sentinels = sentinels

        async def _connect(self) -> None:
            self.host, self.port = await self._sentinels.primary()
            await super()._connect()

        async def on_connect(self) -> None:
            await super().on_connect()
            # A Sentinel may not know yet that another server was promoted.
            await self.send_command("ROLE")
            [role, *_] = await self.read_response()
            if role != b"master":
                raise RedisConnectionError(f"{self.host}:{self.port} is not a primary, although the Sentinels name it")

    return SentinelConnection
