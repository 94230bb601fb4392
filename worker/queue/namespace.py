"""Namespaces: all keys of a queue begin with `{name}:`, so that a cluster keeps them in one hash slot.

The code, the scripts, the values in Redis and the answers know plain names alone. A connection in a namespace adds the
prefix to the keys of each command when it packs the command, and to the scripts a first part that does the same inside
the server. A connection without a namespace does none of this. A command whose keys are not known here is rejected, so
that nothing outside of the namespace is read or written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from worker.errors import UsageError
from worker.queue.scripts import script


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Commands without a key.
_NO_KEY = _names(
    """
    ACL AUTH CLIENT CLUSTER COMMAND CONFIG DISCARD ECHO EXEC HELLO INFO LATENCY MULTI PING QUIT READONLY READWRITE RESET
    ROLE SELECT SLOWLOG SUBSCRIBE TIME UNSUBSCRIBE UNWATCH WAIT
    """
)
#: Commands whose first argument is their only key.
_FIRST = _names(
    """
    APPEND BITCOUNT DECR DECRBY DUMP EXPIRE EXPIREAT EXPIRETIME GET GETDEL GETEX GETRANGE GETSET HDEL HEXISTS HGET
    HGETALL HINCRBY HINCRBYFLOAT HKEYS HLEN HMGET HMSET HRANDFIELD HSCAN HSET HSETNX HSTRLEN HVALS INCR INCRBY
    INCRBYFLOAT LINDEX LINSERT LLEN LPOP LPUSH LPUSHX LRANGE LREM LSET LTRIM PERSIST PEXPIRE PEXPIREAT PEXPIRETIME PFADD
    PSETEX PTTL RESTORE RPOP RPUSH RPUSHX SADD SCARD SET SETEX SETNX SETRANGE SISMEMBER SMEMBERS SMISMEMBER SPOP
    SRANDMEMBER SREM SSCAN STRLEN TTL TYPE XACK XADD XAUTOCLAIM XCLAIM XDEL XLEN XPENDING XRANGE XREVRANGE XTRIM ZADD
    ZCARD ZCOUNT ZINCRBY ZLEXCOUNT ZMSCORE ZPOPMAX ZPOPMIN ZRANDMEMBER ZRANGE ZRANGEBYLEX ZRANGEBYSCORE ZRANK ZREM
    ZREMRANGEBYLEX ZREMRANGEBYRANK ZREMRANGEBYSCORE ZREVRANGE ZREVRANGEBYSCORE ZREVRANK ZSCAN ZSCORE
    """
)
#: Commands whose second argument is their only key.
_SECOND = _names("MEMORY OBJECT XGROUP XINFO")
#: Commands all of whose arguments are keys.
_ALL = _names("DEL EXISTS MGET PFCOUNT RENAME RENAMENX SDIFF SINTER SUNION TOUCH UNLINK WATCH")
_OTHERS = _names("EVALSHA SCAN SCRIPT XREAD XREADGROUP")
#: A key that never exists: see namespace.lua.
NOTHING = "worker:nothing"
_EMPTY = "local NAMESPACE = '{}:'"

Command = Sequence[Any]


@cache
def script_in(prefix: str, name: str) -> str:
    """Return the text of a script for a namespace.

    Args:
        prefix: the prefix of its keys.
        name: the name of the script.
    """
    first = files("worker.queue.scripts").joinpath("namespace.lua").read_text(encoding="utf-8")
    return first.replace(_EMPTY, f"local NAMESPACE = '{prefix}'") + script(name)


class Namespace:
    """Adds the prefix of a namespace to the keys of commands.

    Args:
        prefix: the prefix, `{name}:`.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self._raw = prefix.encode()
        texts = [(script(name), script_in(prefix, name)) for name in _script_names()]
        self._texts = dict(texts)
        self._hashes = {_sha1(text): _sha1(qualified) for text, qualified in texts}
        self._hashes |= {sha: sha for sha in self._hashes.values()}  # SCRIPT LOAD answers with them

    def qualify(self, command: Command) -> Command:
        """Return a command with qualified keys.

        Raises:
            UsageError: the keys of the command are not known, or it runs a script of another package.
        """
        name = command[0]
        if name in _FIRST:
            return (name, self._key(command[1]), *command[2:])
        if name == "EVALSHA":
            return self._script_call(command)
        if name in _ALL:
            return (name, *map(self._key, command[1:]))
        return self._qualify_other(name, command)

    def _key(self, key: Any) -> Any:
        if type(key) is str:
            return self.prefix + key
        return self._raw + (key if isinstance(key, bytes) else str(key).encode())

    def _script_call(self, command: Command) -> Command:
        _, sha, count, *rest = command
        number = int(count)
        known = self._hashes.get(sha)
        if known is None:
            raise UsageError(f"only scripts of Longhaul run in the namespace {self.prefix}")
        keys = [self.prefix + key if type(key) is str else self._key(key) for key in rest[:number]]
        return ("EVALSHA", known, number + 1, *keys, self.prefix + NOTHING, *rest[number:])

    def _qualify_other(self, given: Any, command: Command) -> Command:
        words = _word(given).split()
        name, rest = words[0], [*words[1:], *command[1:]]
        if name in _NO_KEY:
            return command
        if name in _SECOND and len(rest) > 1:
            return (name, rest[0], self._key(rest[1]), *rest[2:])
        if name == "SCRIPT":
            return self._script_command(rest)
        if name == "SCAN":
            return self._scan(rest)
        if name in ("XREAD", "XREADGROUP"):
            return self._read_streams(name, rest)
        if name != given and name in _FIRST | _ALL | _OTHERS:
            return self.qualify((name, *rest))  # in lower case, or bytes
        raise UsageError(f"{name} cannot be sent in the namespace {self.prefix}: its keys are not known")

    def _script_command(self, rest: list[Any]) -> Command:
        """Return `SCRIPT LOAD` with the text for this namespace; `SCRIPT EXISTS` with the hashes of those texts."""
        verb = _word(rest[0])
        if verb == "LOAD" and rest[1] in self._texts:
            return ("SCRIPT", verb, self._texts[rest[1]])
        if verb == "EXISTS":
            return ("SCRIPT", verb, *(self._hashes.get(sha, sha) for sha in rest[1:]))
        raise UsageError(f"only scripts of Longhaul run in the namespace {self.prefix}")

    def _scan(self, rest: list[Any]) -> Command:
        options = [_word(part) for part in rest]
        if "MATCH" not in options:
            return ("SCAN", *rest, "MATCH", f"{self.prefix}*")
        at = options.index("MATCH") + 1
        return ("SCAN", *rest[:at], self._key(rest[at]), *rest[at + 1 :])

    def _read_streams(self, name: str, rest: list[Any]) -> Command:
        at = [_word(part) for part in rest].index("STREAMS") + 1
        middle = at + (len(rest) - at) // 2
        return (name, *rest[:at], *map(self._key, rest[at:middle]), *rest[middle:])


def prefix_of(redis: Any) -> str:
    """Return the prefix that a client of redis-py adds to keys; empty for none."""
    return getattr(redis.connection_pool.connection_class, "namespace_prefix", "")


def check_prefix(redis: Any, prefix: str) -> None:
    """Check that a client of redis-py that was passed to Longhaul has the namespace of the settings.

    Raises:
        UsageError: it has another one, or none.
    """
    found = prefix_of(redis)
    if found != prefix:
        raise UsageError(
            f"redis= adds {found or 'no prefix'} to keys, and the settings {prefix or 'none'}: leave redis= out, or "
            f"pass the `redis` of another client"
        )


def _word(part: Any) -> str:
    return (part.decode(errors="replace") if isinstance(part, bytes) else str(part)).upper()


def _script_names() -> list[str]:
    folder = files("worker.queue.scripts")
    return [one.name.removesuffix(".lua") for one in folder.iterdir() if one.name.endswith(".lua")]


def _sha1(text: str) -> str:
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


@cache
def namespace(prefix: str) -> Namespace:
    """Return the namespace of a prefix."""
    return Namespace(prefix)


@cache
def make_namespaced_class(plain: Any, prefix: str) -> Any:
    """Return a class of asynchronous connections that add a prefix to all keys.

    Args:
        plain: the class of connections; its `pack_commands` calls `pack_command` for each.
        prefix: the prefix.
    """
    qualify = namespace(prefix).qualify

    class NamespacedConnection(plain):  # type: ignore[misc]
        namespace_prefix = prefix

        def pack_command(self, *args: Any) -> Any:
            return super().pack_command(*qualify(args))

    return NamespacedConnection


@cache
def make_blocking_namespaced_class(plain: Any, prefix: str) -> Any:
    """Return a class of synchronous connections that add a prefix to all keys."""
    qualify = namespace(prefix).qualify

    class Packer:
        def __init__(self, packer: Any) -> None:
            self._packer = packer

        def pack(self, *args: Any) -> Any:
            return self._packer.pack(*qualify(args))

    class NamespacedConnection(plain):  # type: ignore[misc]
        namespace_prefix = prefix

        def _construct_command_packer(self, packer: Any) -> Any:
            return Packer(super()._construct_command_packer(packer))

    return NamespacedConnection
