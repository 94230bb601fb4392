"""Watches which user of Redis runs which command on which keys, also inside of scripts."""

from __future__ import annotations

import asyncio
import re
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis

_LINE = re.compile(r"[\d.]+ \[\d+ (\S+)\] (.*)", re.DOTALL)
_WORD = re.compile(r'"(?:\\.|[^"\\])*"')
#: Commands whose second word is part of their name.
_OF_TWO_WORDS = {"client", "script", "config", "acl", "object", "memory", "xinfo", "xgroup"}
_END = "the end of the watch"


class WatchedCommands:
    """The commands that were run.

    Attributes:
        of: the commands of each user.
        arguments: the first arguments of those commands, which are keys if they have any.
    """

    def __init__(self) -> None:
        self.of: dict[str, set[str]] = defaultdict(set)
        self.arguments: dict[str, set[str]] = defaultdict(set)
        self.users: dict[str, str] = {}

    def note(self, user: str, line: str) -> None:
        """Note a command of a user."""
        words = _words(line)
        name = words[0].lower()
        self.of[user].add(f"{name}|{words[1].lower()}" if name in _OF_TWO_WORDS else name)
        self.arguments[user].update(words[1:])


def _words(line: str) -> list[str]:
    """Return the first words of a line of MONITOR, which are in quotes."""
    return [word[1:-1] for word in _WORD.findall(line, 0, 1000)[:8]]


@asynccontextmanager
async def watching(admin: Redis) -> AsyncIterator[WatchedCommands]:
    """Watch the commands of all users during a block. At its end, `WatchedCommands` is complete."""
    watched = WatchedCommands()
    raw = admin.connection_pool.make_connection()
    await raw.connect()
    await raw.send_command("MONITOR")
    await raw.read_response()

    async def collect() -> None:
        user = ""
        while True:
            line = (await raw.read_response()).decode(errors="replace")
            found = _LINE.fullmatch(line)
            assert found, line
            if _END in line:
                return
            if found[1] != "lua":  # the lines of a script follow the line of its call
                is_new = found[2].lower().startswith('"auth"')  # another connection may have had this port before
                if is_new or found[1] not in watched.users:
                    watched.users |= {one["addr"]: one["user"] for one in await admin.client_list()}
                user = watched.users.get(found[1], "unknown")
            watched.note(user, found[2])

    task = asyncio.create_task(collect())
    try:
        yield watched
        await admin.echo(_END)
        await asyncio.wait_for(task, 60)
    finally:
        task.cancel()
        await raw.disconnect()
