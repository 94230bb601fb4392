"""The sides of the queue benchmark: ours and each peer, a script in its own environment.

The scripts are controlled by command line, and answer with JSON lines (`peers/protocol.py`). All of them use one
server, which is emptied between two runs.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from redis import Redis

OURS = "longhaul"
PEERS = ("arq", "saq", "streaq", "taskiq", "celery")

_SCRIPTS = Path(__file__).parent / "peers"
_ENVIRONMENTS = Path(__file__).parent.parent / ".peers"
_START_SECONDS = 30
_STOP_SECONDS = 20
_TICKS = os.sysconf("SC_CLK_TCK")


class Failed(Exception):
    """A side failed, or did not answer in time."""


def interpreter(name: str) -> str:
    """Return the Python of a side. If a peer's pinned requirements have changed, its environment is created again."""
    if name == OURS:
        return sys.executable
    home, pinned = _ENVIRONMENTS / name, (_SCRIPTS / f"{name}.txt").read_text(encoding="utf-8")
    python, stamp = home / "bin" / "python", home / ".installed-from"
    if not (python.exists() and stamp.exists() and stamp.read_text(encoding="utf-8") == pinned):
        sys.stderr.write(f"making the environment of {name}\n")
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run([*install, "-r", _SCRIPTS / f"{name}.txt"], capture_output=True, text=True)
        if done.returncode:
            raise Failed(f"{name}: pip: {done.stderr[-500:]}")
        stamp.write_text(pinned, encoding="utf-8")
    return str(python)


def pinned_version(name: str) -> str:
    """Return the version of a peer that its requirements pin."""
    package = "taskiq-redis" if name == "taskiq" else name
    lines = (_SCRIPTS / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith(f"{package}=="))


@dataclass(frozen=True)
class Counters:
    """The server's counters: reads from clients, calls of commands, and the time of these calls."""

    reads: int
    calls: dict[str, int]
    microseconds: int

    def since(self, before: Counters) -> Counters:
        """Return the difference between two readings."""
        calls = {name: count - before.calls.get(name, 0) for name, count in self.calls.items()}
        added = dict(sorted(((n, c) for n, c in calls.items() if c > 0), key=lambda each: -each[1]))
        return Counters(self.reads - before.reads, added, self.microseconds - before.microseconds)

    @property
    def commands(self) -> int:
        """All calls, including those of scripts."""
        return sum(self.calls.values())


@dataclass(frozen=True)
class Enqueued:
    """The result of a client."""

    count: int
    seconds: float
    longest_block_ms: float


class Working:
    """A worker process."""

    def __init__(self, name: str, process: subprocess.Popen[str], log: IO[str]) -> None:
        self._name = name
        self._process = process
        self._log = log
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._so_far = 0
        self.pid = process.pid
        threading.Thread(target=self._read, daemon=True).start()

    def hear(self, key: str, seconds: float) -> dict[str, Any]:
        """Wait for a line with that key.

        Raises:
            Failed: the line did not arrive in time.
        """
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            try:
                line = self._lines.get(timeout=left)
            except queue.Empty:
                break
            if line is None:
                raise Failed(f"{self._name}: its worker ended: {self._last_words()}")
            if key in line:
                return line
        raise Failed(f"{self._name}: no {key!r} within {seconds:g} s: {self._last_words()}")

    def so_far(self) -> int:
        """Return how many jobs have run, if no number is expected."""
        with contextlib.suppress(queue.Empty):
            while True:
                line = self._lines.get_nowait()
                if line is None:
                    raise Failed(f"{self._name}: its worker ended: {self._last_words()}")
                self._so_far = line.get("so_far", self._so_far)
        return self._so_far

    def stop(self) -> dict[str, Any]:
        """Drain the worker, and return its tally."""
        self._process.send_signal(signal.SIGTERM)
        return self.hear("ended", _STOP_SECONDS)

    def rss_mb(self) -> float:
        """Return the current memory of the worker."""
        lines = Path(f"/proc/{self.pid}/status").read_text(encoding="utf-8").splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("VmRSS:"))) / 1024

    def cpu_seconds(self) -> float:
        """Return the CPU time of the worker until now."""
        fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def kill(self) -> None:
        """Kill the worker if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                self._lines.put(json.loads(line))
        self._lines.put(None)

    def _last_words(self) -> str:
        self._log.seek(0)
        return self._log.read()[-500:].strip()


class Side:
    """One side of the comparison.

    Args:
        name: ours or a peer's.
        redis_url: the server of all.
        database_url: PostgreSQL, which only ours needs.
    """

    def __init__(self, name: str, redis_url: str, database_url: str) -> None:
        self.name = name
        self._url = redis_url
        self._script = [interpreter(name), str(_SCRIPTS / f"{name}_peer.py")]
        self._environment = {"PATH": os.environ.get("PATH", ""), "DATABASE_URL": database_url}
        self.redis: Redis = Redis.from_url(redis_url)

    def flush(self) -> None:
        """Empty the server."""
        self.redis.flushall()

    def counters(self) -> Counters:
        """Return the server's counters."""
        stats = self.redis.info("commandstats")
        for ours in ("info", "flushall"):
            stats.pop(f"cmdstat_{ours}", None)
        calls = {name.removeprefix("cmdstat_"): each["calls"] for name, each in stats.items()}
        microseconds = sum(each["usec"] for each in stats.values())
        return Counters(self.redis.info("stats")["total_reads_processed"], calls, microseconds)

    def enqueue(
        self, job: str, count: int, *, way: str = "many", delay: float = 0.0, pause: float = 0.0, seconds: float = 300
    ) -> Enqueued:
        """Run a client.

        Raises:
            Failed: the client failed.
        """
        command = ["enqueue", "--url", self._url, "--job", job, "--count", str(count), "--way", way]
        command += ["--delay", str(delay), "--pause", str(pause)]
        done = subprocess.run(
            [*self._script, *command], env=self._environment, capture_output=True, text=True, timeout=seconds
        )
        if done.returncode:
            raise Failed(f"{self.name}: its client: {done.stderr[-500:].strip()}")
        told = json.loads(done.stdout.splitlines()[-1])
        return Enqueued(told["count"], told["seconds"], told["longest_block_ms"])

    @contextlib.contextmanager
    def work(
        self,
        slots: int,
        job: str = "empty",
        *,
        expect: int = 0,
        bare: bool = False,
        metrics_port: int | None = None,
    ) -> Iterator[Working]:
        """Run a worker, from the time that it is ready.

        Args:
            slots: jobs at the same time.
            job: name of the job.
            expect: number of jobs after which the worker prints its tally; 0 for never.
            bare: without the mirror; for our side only.
            metrics_port: the port of metrics; for our side only.
        """
        command = ["work", "--url", self._url, "--job", job, "--slots", str(slots), "--expect", str(expect)]
        command += ["--bare"] if bare else []
        command += [] if metrics_port is None else ["--metrics-port", str(metrics_port)]
        with tempfile.TemporaryFile("w+") as log:
            process = subprocess.Popen(
                [*self._script, *command], env=self._environment, stdout=subprocess.PIPE, stderr=log, text=True
            )
            working = Working(self.name, process, log)
            try:
                working.hear("ready", _START_SECONDS)
                yield working
            finally:
                working.kill()
