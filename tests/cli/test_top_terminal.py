"""`worker top` as a command: without a terminal, and in one of its own."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import re
import selectors
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator

import pytest
import typer
from redis.asyncio import Redis

from worker.cli.top.command import top
from worker.embedded import Services
from worker.errors import ServerUnavailable


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Let commands of this process use another Redis."""
    yield lambda url: monkeypatch.setenv("REDIS_URL", url)


def test_without_a_terminal_one_frame_is_printed(
    at: Callable[[str], None], servers: Services, capsys: pytest.CaptureFixture[str]
) -> None:
    at(servers.redis_url)
    top(every=0.1, once=False)
    assert re.search(r"^workers · \d+$", capsys.readouterr().out, re.MULTILINE)


def test_one_frame_without_redis_is_an_error(at: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    at("redis://127.0.0.1:1/0")
    with pytest.raises(ServerUnavailable, match="start Redis there, or set REDIS_URL"):
        top(every=0.1, once=True)
    assert capsys.readouterr().out == ""


def test_without_textual_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "textual", None)
    for stream in (sys.stdin, sys.stdout):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    with pytest.raises(typer.Exit) as ended:
        top(every=0.1, once=False)
    assert ended.value.exit_code == 2
    assert "pip install 'longhaul-worker[top]'" in capsys.readouterr().err


# --- as a process


class Terminal:
    """A process with a terminal of its own, 100 by 30."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self._side, other = pty.openpty()
        fcntl.ioctl(other, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        environment = environment | {"TERM": "xterm-256color"}
        self.process = subprocess.Popen(command, stdin=other, stdout=other, stderr=other, env=environment)
        os.close(other)
        self.written = ""
        self._readable = selectors.SelectSelector()
        self._readable.register(self._side, selectors.EVENT_READ)

    def read_until(self, text: str) -> None:
        """Read until a text has come; raise `TimeoutError` after a minute without it."""
        ends_at = time.monotonic() + 60
        while text not in self.written:
            left = ends_at - time.monotonic()
            if left <= 0 or not self._readable.select(left):
                raise TimeoutError(f"{text!r} has not come: {self.written[-2_000:]!r}")
            self.written += os.read(self._side, 65_536).decode(errors="replace")

    def press(self, key: str) -> None:
        """Send a key."""
        os.write(self._side, key.encode())

    def end(self) -> int:
        """Read to the end; return the exit code."""
        try:
            while chunk := os.read(self._side, 65_536):
                self.written += chunk.decode(errors="replace")
        except OSError:
            pass  # the other side is closed: EIO on Linux
        os.close(self._side)
        return self.process.wait(timeout=30)


async def test_the_page_runs_in_a_terminal_until_q(servers: Services, redis: Redis) -> None:
    await redis.zadd("arq:queue", {"waits": 1})
    terminal = Terminal([sys.executable, "-m", "worker", "top", "--every", "0.2"], servers.environment())

    def use() -> int:
        terminal.read_until("1 waiting")
        terminal.press("q")
        return terminal.end()

    async with asyncio.timeout(60):
        assert await asyncio.to_thread(use) == 0
    assert "slots in use" in terminal.written
    assert terminal.written.rstrip().endswith("\x1b[?25h") or "\x1b[?1049l" in terminal.written  # left as it was


def test_no_other_command_waits_for_packages_of_extras() -> None:
    names = ("textual", "prometheus_client", "starlette")
    code = f"import sys, worker.cli; print([name for name in {names!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout == "[]\n"


# --- cost of a frame
