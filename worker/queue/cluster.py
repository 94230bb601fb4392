"""Redis Cluster: finds the node that owns the hash slot of the namespace.

All keys of a queue are in one slot (namespace.py). So a plain connection to the primary of that slot is enough, as with
Sentinels: each new connection asks a node of the cluster for the owner. A node that does not own the slot answers with
an error (MOVED). While a slot moves to another node, or has no owner, commands are rejected (ASK, TRYAGAIN,
CLUSTERDOWN). None of these commands has been executed. The connection ends with a `ClusterRedirect`, and redis-py sends
the command again for about a second, over a new connection to the owner. If that does not help, or if a part of a
pipeline has been executed, the error is one of connections, and the caller handles it as any other outage.
https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/

Longhaul does not use redis-py's `RedisCluster`: it looks up the slot of each command, has connections of its own, and
knows nothing of the thread that renews the leases.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import redis as blocking
from redis.asyncio import ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.crc import key_slot
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry as BlockingRetry

from worker.queue.errors import ClusterRedirect, PipelineInterrupted

#: First words of the answers of a node that does not execute commands for the slot now.
_REDIRECTS = frozenset({"MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN"})
_IN_SCRIPT = "non local key"
#: How often a command is sent again, with pauses of at most 0.2 s.
_RETRIES = 6
_BACKOFF = {"cap": 0.2, "base": 0.02}

Address = tuple[str, int]


class SlotOwner:
    """Asks nodes of a cluster for the primary of one slot. The node that answered last is asked first.

    Attributes:
        slot: the number of the slot.
        epoch: grows when a node rejects commands for the slot. Connections of an older epoch are reopened.

    Args:
        seeds: URLs of nodes, with user, password and TLS options.
        prefix: the prefix of all keys.
        seconds: longest wait for one node, in seconds.
    """

    def __init__(self, seeds: tuple[str, ...], prefix: str, seconds: float) -> None:
        self.slot = key_slot(prefix.encode())
        self.epoch = 0
        self._prefix = prefix
        self._seeds = seeds
        self._seconds = seconds
        #: The nodes that the last answer named; a new tuple each time, because two threads read it.
        self._known: tuple[Address, ...] = ()

    async def find(self) -> Address:
        """Return host and port of the primary.

        Raises:
            RedisError: no node answers, or the slot has no owner.
        """
        errors: dict[str, BaseException] = {}
        for url, address in self._candidates():
            pool: ConnectionPool = ConnectionPool.from_url(
                url, socket_connect_timeout=self._seconds, socket_timeout=self._seconds
            )
            pool.connection_kwargs |= address
            connection: Any = pool.make_connection()  # type: ignore[no-untyped-call]
            try:
                await connection.connect()
                await connection.send_command("CLUSTER", "SLOTS")
                return self._choose(connection.host, await connection.read_response())
            except (RedisError, OSError, LookupError) as error:
                errors[f"{connection.host}:{connection.port}"] = error
            finally:
                await connection.disconnect(nowait=True)
        raise self._unknown(errors)

    def find_blocking(self) -> Address:
        """Return host and port of the primary; for use in a thread."""
        errors: dict[str, BaseException] = {}
        for url, address in self._candidates():
            pool = blocking.ConnectionPool.from_url(
                url, socket_connect_timeout=self._seconds, socket_timeout=self._seconds
            )
            pool.connection_kwargs |= address
            connection: Any = pool.make_connection()
            try:
                connection.connect()
                connection.send_command("CLUSTER", "SLOTS")
                return self._choose(connection.host, connection.read_response())
            except (RedisError, OSError, LookupError) as error:
                errors[f"{connection.host}:{connection.port}"] = error
            finally:
                connection.disconnect()
        raise self._unknown(errors)

    def reject(self, connection: Any, error: ResponseError, answers: int) -> RedisConnectionError:
        """Return the error for an answer of a node that does not execute commands for the slot now.

        If the answer names another node, that one is asked first. All connections are reopened.

        Args:
            connection: the connection to the node.
            error: the answer.
            answers: the number of answers to commands before it that were sent together with this one.
        """
        self.epoch += 1
        word, _, place = str(error).partition(" ")
        host, _, port = place.rpartition(" ")[2].rpartition(":")
        if word == "MOVED" and host and port.isdigit():
            moved = (host, int(port))
            self._known = (moved, *(one for one in self._known if one != moved))
        node = f"{connection.host}:{connection.port}"
        kind = PipelineInterrupted if answers or _IN_SCRIPT in str(error) else ClusterRedirect
        return kind(f"the node {node} does not serve the keys {self._prefix}* now: {error}")

    def _candidates(self) -> Iterable[tuple[str, dict[str, Any]]]:
        """Return the URL of each node to ask, with its address if it differs from that in the URL."""
        first = self._seeds[0]
        yield from ((first, {"host": host, "port": port}) for host, port in self._known)
        yield from ((url, {}) for url in self._seeds)

    def _choose(self, asked: str, ranges: list[Any]) -> Address:
        """Return the primary of the slot, by the answer of CLUSTER SLOTS.

        Raises:
            LookupError: the slot has no owner.
        """
        owner: Address | None = None
        nodes: list[Address] = []
        for first, last, *members in ranges:
            found = [_address(member, asked) for member in members]
            nodes += found
            if first <= self.slot <= last and found:
                owner = found[0]
        if owner is None:
            raise LookupError(f"no node owns the slot {self.slot}")
        self._known = (owner, *dict.fromkeys(node for node in nodes if node != owner))
        return owner

    def _unknown(self, errors: dict[str, BaseException]) -> RedisError:
        reasons = [f"{node}: {_explain(error)}" for node, error in errors.items()]
        return RedisConnectionError(f"no node of the cluster knows the owner of {self._prefix}*: {'; '.join(reasons)}")


def _address(member: list[Any], asked: str) -> Address:
    """Return host and port of a node; a node without a host has that of the node that answered."""
    host, port = member[0], member[1]
    name = host.decode() if host else ""
    return (asked if name in ("", "?") else name), int(port)


def _explain(error: BaseException) -> str:
    if "cluster support disabled" in str(error):
        return "it is not in cluster mode; write redis:// in place of redis+cluster://"
    return str(error).rstrip(".")


@cache
def slot_owner(seeds: tuple[str, ...], prefix: str, seconds: float) -> SlotOwner:
    """Return the object that all connections of this process share; `seconds` is the longest wait for one node."""
    return SlotOwner(seeds, prefix, seconds)


@cache
def make_cluster_connection_class(plain: Any) -> Any:
    """Return a class of connections to the primary of the slot."""

    class ClusterConnection(plain):  # type: ignore[misc]
        retry: Any
        #: Whether the connection is reopened when another one has found that the slot has moved.
        follows = True

        def __init__(self, *, owner: SlotOwner, **options: Any) -> None:
            retry = Retry(ExponentialBackoff(**_BACKOFF), _RETRIES)
            super().__init__(retry=retry, retry_on_error=[ClusterRedirect], **options)
            self._owner = owner
            self._epoch: int | None = None
            self._answers = 0

        async def connect(self) -> None:
            retry, self.retry = self.retry, Retry(NoBackoff(), 0)  # the retries are for commands
            try:
                await super().connect()
            finally:
                self.retry = retry
            self._answers = 0  # those of the handshake do not count

        async def _connect(self) -> None:
            self._epoch, self._epoch_found = None, self._owner.epoch
            self.host, self.port = await self._owner.find()
            await super()._connect()

        async def on_connect(self) -> None:
            await super().on_connect()
            self._epoch = self._epoch_found

        async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            self._answers = 0
            if self._epoch not in (None, self._owner.epoch) and self.follows:
                await self.disconnect(nowait=True)
            await super().send_packed_command(command, check_health)

        async def read_response(self, *args: Any, **options: Any) -> Any:
            try:
                answer = await super().read_response(*args, **options)
            except ResponseError as error:
                if not _is_redirect(error):
                    self._answers += 1
                    raise
                await self.disconnect(nowait=True)
                raise self._owner.reject(self, error, self._answers) from error
            self._answers += 1
            return answer

    return ClusterConnection


@cache
def make_blocking_cluster_class(plain: Any) -> Any:
    """Return a class of synchronous connections to the primary of the slot."""

    class ClusterConnection(plain):  # type: ignore[misc]
        retry: Any

        def __init__(self, *, owner: SlotOwner, **options: Any) -> None:
            retry = BlockingRetry(ExponentialBackoff(**_BACKOFF), _RETRIES)
            super().__init__(retry=retry, retry_on_error=[ClusterRedirect], **options)
            self._owner = owner
            self._epoch: int | None = None
            self._answers = 0

        def connect(self) -> None:
            retry, self.retry = self.retry, BlockingRetry(NoBackoff(), 0)  # the retries are for commands
            try:
                super().connect()
            finally:
                self.retry = retry
            self._answers = 0  # those of the handshake do not count

        def _connect(self) -> Any:
            self._epoch, self._epoch_found = None, self._owner.epoch
            self.host, self.port = self._owner.find_blocking()
            return super()._connect()

        def on_connect(self) -> None:
            super().on_connect()
            self._epoch = self._epoch_found

        def send_packed_command(self, command: Any, check_health: bool = True) -> None:
            self._answers = 0
            if self._epoch not in (None, self._owner.epoch):
                self.disconnect()
            super().send_packed_command(command, check_health)

        def read_response(self, *args: Any, **options: Any) -> Any:
            try:
                answer = super().read_response(*args, **options)
            except ResponseError as error:
                if not _is_redirect(error):
                    self._answers += 1
                    raise
                self.disconnect()
                raise self._owner.reject(self, error, self._answers) from error
            self._answers += 1
            return answer

    return ClusterConnection


def _is_redirect(error: ResponseError) -> bool:
    text = str(error)
    return text.split(" ", 1)[0] in _REDIRECTS or _IN_SCRIPT in text
