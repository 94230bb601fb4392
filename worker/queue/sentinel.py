"""Sentinels: processes that know which of several servers is the primary, and make another one it when it has died.

Each new connection asks them; a connection that ends, or whose server takes no writes any more, is opened anew.
https://redis.io/docs/latest/develop/reference/sentinel-clients/
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


class Asked:
    """Sentinels, the one that answered last before the others.

    Args:
        sentinels: where they are.
        seconds: longest wait for one of them.
    """

    def __init__(self, sentinels: Sentinels, seconds: float) -> None:
        self.urls = list(sentinels.urls)
        self._question = ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", sentinels.service)
        self._service = sentinels.service
        self._seconds = seconds

    async def primary(self) -> tuple[str, int]:
        """Return host and port of the primary.

        Raises:
            RedisError: none of them knows it.
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
        """Return the same, to a thread."""
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
        # A new list: the event loop and the thread of the leases both walk it.
        self.urls = sorted(self.urls, key=lambda other: other != url)
        return found[0].decode(), int(found[1])

    def _unknown(self, errors: dict[str, BaseException]) -> RedisError:
        said = [f"{urlsplit(url).netloc.rpartition('@')[2]}: {str(error).rstrip('.')}" for url, error in errors.items()]
        why = "; ".join(said) or "they answer, and do not know it"
        return RedisConnectionError(f"no Sentinel tells the primary of {self._service}: {why}")


@cache
def asked_of(sentinels: Sentinels, seconds: float) -> Asked:
    """Return what all connections of this process ask by; `seconds` is the longest wait for one of them."""
    return Asked(sentinels, seconds)


@cache
def of_sentinels(plain: Any) -> Any:
    """Return a class of connections whose server is the primary that Sentinels tell."""

    class OfSentinels(plain):  # type: ignore[misc]
        def __init__(self, *, asked: Asked, **options: Any) -> None:
            super().__init__(**options)
            self._asked = asked

        async def _connect(self) -> None:
            self.host, self.port = await self._asked.primary()
            await super()._connect()

        async def on_connect(self) -> None:
            await super().on_connect()
            # A Sentinel may not know yet that another one is.
            await self.send_command("ROLE")
            [role, *_] = await self.read_response()
            if role != b"master":
                raise RedisConnectionError(f"{self.host}:{self.port} is no primary, as the Sentinels have it")

    return OfSentinels
