"""The worker processes of the demo, with their logs in a temporary folder."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path


class Workers:
    """Workers by name, ended with the demo."""

    def __init__(self, environment: Mapping[str, str], logs: Path) -> None:
        self._environment = dict(environment)
        self._logs = logs
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        """Start a worker that upgrades the ledger's tables first."""
        with self._log(name).open("wb") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", "worker", "run", "--migrate", "--name", name],
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,  # only the demo gets Ctrl-C, and it ends the workers
            )

    def ended(self) -> list[str]:
        """Return the names of the workers that have ended."""
        return [name for name, process in self._processes.items() if process.poll() is not None]

    def log(self, name: str) -> str:
        """Return the output of a worker."""
        return self._log(name).read_text(encoding="utf-8", errors="replace")

    def kill(self, name: str) -> None:
        """Kill a worker by SIGKILL."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def stop(self) -> None:
        """Drain all workers, and wait until they have ended."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _log(self, name: str) -> Path:
        return self._logs / f"{name}.log"
