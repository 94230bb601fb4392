"""Logs an outage of Redis once when it begins, and once when it is over.

Leases, operator commands, invalidations, the mirror, cron and the completer all use Redis independently, and all retry.
The first component to see the outage logs it; the others stay quiet until it ends.
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
    "OOM": "its memory is full (maxmemory), nothing was written; raise it, or retry when jobs have ended",
    "NOREPLICAS": "it has too few replicas (min-replicas-to-write), nothing was written; retry when they are back",
    "MISCONF": "it cannot persist its data, nothing was written; check its log and its disk",
    "MOVED": "it is a node of a cluster; write redis+cluster:// in place of redis://",
    "CROSSSLOT": "it is a node of a cluster; write redis+cluster:// in place of redis://",
    "NOPERM": "its user lacks a permission: docs/how-to/least-privilege.md has the ACL that is needed",
}
#: Codes of refusals that are about the state of the server, not about the command.
REFUSALS = frozenset({*_ADVICE, "away", "LOADING", "BUSY", "MASTERDOWN", "NOSCRIPT", "NOAUTH", "WRONGPASS"})
#: Shortest time between two log lines about the same kind of outage, for a Redis that comes and goes.
_LOG_INTERVAL_SECONDS = 10.0


@dataclass
class _Outage:
    since: float
    was_logged: bool = False
    parts: set[str] = field(default_factory=set)


class OutageLog:
    """The outages in progress and whether they were logged; shared by the event loop and the thread of the leases."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._outages: dict[str, _Outage] = {}  # by kind
        self._logged_at: dict[str, float] = {}

    def failed(self, part: str, error: BaseException) -> None:
        """Note that a part of the worker failed.

        Args:
            part: The part and its failure, e.g. `leases cannot be renewed`.
            error: The reason.
        """
        kind, now = kind_of(error), time.monotonic()
        with self._lock:
            for other in [other for other, outage in self._outages.items() if other != kind and part in outage.parts]:
                self._recover(other, part)
            outage = self._outages.setdefault(kind, _Outage(now))
            outage.parts.add(part)
            if outage.was_logged or now - self._logged_at.get(kind, -_LOG_INTERVAL_SECONDS) < _LOG_INTERVAL_SECONDS:
                return
            outage.was_logged, self._logged_at[kind] = True, now
        logger.warning("Redis: %s: %s; running jobs continue, retrying", part, format_error(error))

    def answered(self, part: str) -> None:
        """Note that a part of the worker succeeded."""
        if not self._outages:
            return
        with self._lock:
            over = [self._recover(kind, part) for kind, outage in list(self._outages.items()) if part in outage.parts]
        for outage in over:
            if outage is not None and outage.was_logged:
                logger.info("Redis answers again after %.1f s", time.monotonic() - outage.since)

    def _recover(self, kind: str, part: str) -> _Outage | None:
        """Remove a part from an outage. Returns the outage if that was its last part."""
        outage = self._outages[kind]
        outage.parts.discard(part)
        return None if outage.parts else self._outages.pop(kind)


def kind_of(error: BaseException) -> str:
    """Return the kind of an outage: `away`, or the code of Redis' error, e.g. `READONLY` or `OOM`."""
    if isinstance(error, RedisConnectionError | RedisTimeoutError | OSError):
        return "away"
    text = str(error)
    for code in ("READONLY", "OOM", "NOREPLICAS", "MISCONF", "NOPERM", "CROSSSLOT"):
        if code in text:  # Redis 6 has it in the middle of a script's error
            return code
    name = type(error).__name__.removesuffix("Error")
    known = {"ReadOnly": "READONLY", "OutOfMemory": "OOM", "NoPermission": "NOPERM"}
    return known.get(name, text.split(" ", 1)[0] if isinstance(error, ResponseError) else name)


def unavailable(settings: Settings, error: BaseException, advice: str) -> ServerUnavailable:
    """Return the error to raise if Redis does not answer, or rejects a command.

    Args:
        settings: The settings with the URL of Redis.
        error: The error of redis-py.
        advice: The next step for the user if Redis does not answer.
    """
    kind = kind_of(error)
    reason = str(error).rstrip(".")
    if kind in _ADVICE and kind not in reason:
        reason = f"{kind} {reason}"  # redis-py strips the code and uses it as the error's type
    return ServerUnavailable(f"Redis at {mask_passwords(settings.redis.url)}: {reason}: {_ADVICE.get(kind, advice)}")
