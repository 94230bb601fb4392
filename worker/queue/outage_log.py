"""What is said of a Redis that does not answer, or refuses: once when it begins, and once when it is over.

Leases, orders, the watch, the mirror, cron and the ends of jobs all speak with Redis, each in its own time,
and all go on asking. Whoever notices first says it; the others are silent as long as it is the same trouble.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from worker.errors import ServerUnavailable, format_error
from worker.settings import mask_passwords

if TYPE_CHECKING:
    from worker.settings import Settings

logger = logging.getLogger("longhaul.redis")

_ADVICE = {
    "READONLY": "it is a replica; give the URL of the primary, or that of its Sentinels (redis+sentinel://)",
    "OOM": "its memory is full (maxmemory): nothing was written; raise it, or try again when jobs have ended",
    "NOREPLICAS": "it has too few replicas (min-replicas-to-write): nothing was written; try again when they are back",
    "MISCONF": "it cannot write its file: nothing was written; look at its log and at its disk",
    "NOPERM": "its user may not do this: docs/how-to/secure-redis.md has the ACL that is needed",
}
#: Codes of refusals that are about the state of the server, not about the command.
REFUSALS = frozenset({*_ADVICE, "away", "LOADING", "BUSY", "MASTERDOWN", "NOSCRIPT", "NOAUTH", "WRONGPASS"})
#: A Redis that comes and goes is complained of no more often than that.
_SAY_AGAIN_SECONDS = 10.0


@dataclass
class _Trouble:
    since: float
    told: bool = False
    whose: set[str] = field(default_factory=set)


class OutageLog:
    """What fails now, and what was said of it; shared by the event loop and the thread of the leases."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._troubles: dict[str, _Trouble] = {}  # by kind
        self._told_at: dict[str, float] = {}

    def failed(self, who: str, error: BaseException) -> None:
        """Note that somebody could not do his part.

        Args:
            who: what cannot be done now, e.g. `orders cannot be read`.
            error: why.
        """
        kind, now = kind_of(error), time.monotonic()
        with self._lock:
            for other in [other for other, trouble in self._troubles.items() if other != kind and who in trouble.whose]:
                self._leave(other, who)
            trouble = self._troubles.setdefault(kind, _Trouble(now))
            trouble.whose.add(who)
            if trouble.told or now - self._told_at.get(kind, -_SAY_AGAIN_SECONDS) < _SAY_AGAIN_SECONDS:
                return
            trouble.told, self._told_at[kind] = True, now
        logger.warning("Redis: %s: %s; what runs goes on, and it is asked until it is well", who, format_error(error))

    def answered(self, who: str) -> None:
        """Note that somebody could do his part."""
        if not self._troubles:
            return
        with self._lock:
            over = [self._leave(kind, who) for kind, trouble in list(self._troubles.items()) if who in trouble.whose]
        for trouble in over:
            if trouble is not None and trouble.told:
                logger.info("Redis answers again, after %.1f s", time.monotonic() - trouble.since)

    def _leave(self, kind: str, who: str) -> _Trouble | None:
        """Take somebody off a trouble; returns it where he was the last one."""
        trouble = self._troubles[kind]
        trouble.whose.discard(who)
        return None if trouble.whose else self._troubles.pop(kind)


def kind_of(error: BaseException) -> str:
    """Return what kind of trouble an error is: `away`, or the code of a refusal, e.g. `READONLY` or `OOM`."""
    if isinstance(error, RedisConnectionError | RedisTimeoutError | OSError):
        return "away"
    text = str(error)
    for code in ("READONLY", "OOM", "NOREPLICAS", "MISCONF", "NOPERM"):
        if code in text:  # Redis 6 has it in the middle of what it says of a script
            return code
    name = type(error).__name__.removesuffix("Error")
    known = {"ReadOnly": "READONLY", "OutOfMemory": "OOM", "NoPermission": "NOPERM"}
    return known.get(name, text.split(" ", 1)[0] if isinstance(error, ResponseError) else name)


def unavailable(settings: Settings, error: BaseException, advice: str) -> ServerUnavailable:
    """Return what is raised where Redis does not answer, or refuses.

    Args:
        settings: for Redis.
        error: what it said.
        advice: what to do where it does not answer.
    """
    kind = kind_of(error)
    said = str(error).rstrip(".")
    if kind in _ADVICE and kind not in said:
        said = f"{kind} {said}"  # redis-py has taken the code for the error's type
    return ServerUnavailable(f"Redis at {mask_passwords(settings.redis.url)}: {said}: {_ADVICE.get(kind, advice)}")
