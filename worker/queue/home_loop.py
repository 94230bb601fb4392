"""The event loop that connections belong to.

A socket of asyncio works in one event loop, and an answer on it belongs to one process. A client may outlive both: it
is used by one `asyncio.run` after the other, or was used before its process forked.
"""

from __future__ import annotations

import asyncio
import os

from worker.errors import UsageError

#: Connections that a forked process has inherited. If they were collected, their sockets would be removed from the
#: selector of the event loop, which the parent shares.
_inherited: list[object] = []


class HomeLoop:
    """The process and the event loop that the connections of its owner belong to."""

    def __init__(self) -> None:
        self._process = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def is_current(self) -> bool:
        """Whether the caller is in the process and the event loop of the last move."""
        return asyncio.get_running_loop() is self._loop and os.getpid() == self._process

    def moves(self, *connections: object) -> bool:
        """Return whether the owner has moved to another event loop, or to another process: it has to forget its
        connections, and open others. Call this before each use.

        Args:
            connections: those of the owner.

        Raises:
            UsageError: the connections belong to another event loop, which may still use them.
        """
        if self.is_current:
            return False
        process, loop, before = os.getpid(), asyncio.get_running_loop(), self._loop
        if before is not None and process != self._process:
            _inherited.extend(connections)
        elif before is not None and not before.is_closed():
            raise UsageError(
                "a Client cannot be used in two event loops: its connections belong to the first one, which is not "
                "closed yet. Make a Client in each, or use SyncClient, which threads may share"
            )
        self._process, self._loop = process, loop
        return before is not None
