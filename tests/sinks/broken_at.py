"""Exports authors, and breaks at one use of the directory: `python -m tests.sinks.broken_at KIND DIRECTORY HOW PLACE`.

The uses are counted from 1, also over the manifest. It is killed there by SIGKILL, or the disk is full from there on.
The last line tells how often the directory was used.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from typing import Any

from tests.sinks.killed import main

_EVENTS = ("open", "os.rename", "os.link", "os.remove", "os.listdir", "os.mkdir", "os.chmod", "tempfile.mkstemp")


class Breaker:
    """An audit hook, which Python calls before each use of a file."""

    def __init__(self, directory: str, how: str, place: int) -> None:
        self._directory = directory
        self._how = how
        self._place = place
        self.count = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in _EVENTS or not str(arguments[0]).startswith(self._directory):
            return
        self.count += 1
        if self.count == self._place and self._how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.count == self._place:
            resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


if __name__ == "__main__":
    _, kind, directory, how, place = sys.argv
    breaker = Breaker(directory, how, int(place))
    sys.addaudithook(breaker)
    asyncio.run(main(kind, directory))
    print(breaker.count)
