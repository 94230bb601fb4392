"""The rights in Redis that each kind of user needs, and no more: lines of an ACL file.

tests/roles/test_main_paths.py derives them: it watches the commands of each user, and fails if one is missing or
is never used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, get_args

from worker.errors import SettingsError
from worker.queue import keys
from worker.queue.namespace import NOTHING
from worker.settings import parse_redis_url

if TYPE_CHECKING:
    from worker.settings import Settings

UserKind = Literal["worker", "operator", "client", "reader"]
USER_KINDS: tuple[str, ...] = get_args(UserKind)

_MEANING = re.compile(r"[\s*?\[\]\\\"']")
#: The channel on which Redis announces changed keys.
CHANNEL = "__redis__:invalidate"
_CONNECTION = "ping role client|id client|setinfo client|tracking subscribe multi exec"
_LOOK = (
    "exists get hget hgetall hlen hmget hscan info scan smembers smismember sscan time type xrange xread xrevrange "
    "zcard zcount zrange zrangebyscore zrevrange zrevrank zscore"
)
_ENQUEUE = (
    "evalsha script|load time del exists get hdel hexists hgetall hset pexpire set srem type zadd zrange zrem zscore"
)
COMMANDS: dict[str, str] = {
    "worker": f"{_CONNECTION} {_ENQUEUE} decr expire getex hget hincrby hlen hmget hscan hsetnx incr persist psetex "
    "sadd sismember sscan unwatch watch xadd xrange zcard zcount zmscore zrangebyscore zrank zremrangebyscore "
    "zrevrangebyscore zscan",
    "operator": f"{_CONNECTION} {_LOOK} {_ENQUEUE} sadd xadd zmscore",
    "client": f"{_CONNECTION} {_ENQUEUE}",
    "reader": f"{_CONNECTION} {_LOOK}",
}


def key_patterns(kind: UserKind, queues: Iterable[str], prefix: str = "") -> list[str]:
    """Return the keys of a user, as rules of an ACL.

    Args:
        kind: the kind of user.
        queues: the names of the queues.
        prefix: the beginning of all keys: that of the namespace.
    """
    found = list(dict.fromkeys(queues))
    if kind != "client":
        others = [name for name in found if not name.startswith("arq:")]
        mark = "%R~" if kind == "reader" else "~"
        return [f"{mark}{prefix}{pattern}" for pattern in ("arq:*", "worker:*", *others)]
    written = (keys.JOB, keys.UNIQUE, keys.PRIORITIES, keys.PRIORITY, "worker:fair:", keys.GROUP)
    read = (keys.RESULT, keys.IN_PROGRESS, keys.RUN)
    return [
        *(f"~{prefix}{name}" for name in found),
        *(f"~{prefix}{one}*" for one in written),
        f"~{prefix}{keys.CANCELLED}",
        *(f"%R~{prefix}{one}*" for one in read),
        *([f"~{prefix}{NOTHING}"] if prefix else []),
    ]


def acl_rules(kind: UserKind, settings: Settings) -> list[str]:
    """Return the rules of a user: keys, one channel, and commands. It has no password yet, so it cannot log in.

    Args:
        kind: "worker" runs jobs; "operator" enqueues, looks and gives orders; "client" enqueues and waits for results;
            "reader" looks.
        settings: the settings, which name the queues and the namespace.

    Raises:
        SettingsError: the name of a queue has a character that has a meaning in an ACL.
    """
    queues = [*settings.worker.queues] or [settings.worker.queue]
    for queue in queues:
        if _MEANING.search(queue):
            raise SettingsError(
                f"queue {queue!r}: spaces, quotes and * ? [ ] \\ have a meaning in an ACL; use another name"
            )
    commands = COMMANDS[kind].split()
    if parse_redis_url(settings.redis.url).cluster:
        commands.append("cluster|slots")
    patterns = key_patterns(kind, queues, settings.redis.prefix)
    return ["reset", "on", *patterns, f"&{CHANNEL}", *(f"+{command}" for command in dict.fromkeys(commands))]
