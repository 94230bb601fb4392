"""Starts Python processes in milliseconds: a server that has imported the worker forks them.

A worker of its own takes more than a second of CPU to import its packages, and the tests start hundreds. The processes
are real ones: they have their own PID, environment, output and exit code, and can be killed, stopped and replaced.
"""

from __future__ import annotations

import array
import asyncio
import atexit
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
#: What the server imports before it forks.
PRELOADED = (
    "worker.cli",
    "worker.runtime.worker",
    "worker.maintenance",
    "worker.sinks",
    "worker.sources",
    "worker.testing.runner",
    "tests.models",
)

_MAX_MESSAGE = 1 << 20
_START_SECONDS = 60


class ForkedProcess:
    """A process of the server, with the methods of `subprocess.Popen` that the tests use."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self._server = server
        self.pid = pid

    @property
    def returncode(self) -> int | None:
        """The exit code, -N after signal N, or None while it runs."""
        return self._server.ends.get(self.pid)

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end. Return the exit code.

        Raises:
            subprocess.TimeoutExpired: It runs for longer than `timeout` seconds.
        """
        with self._server.changed:
            if not self._server.changed.wait_for(lambda: self.pid in self._server.ends, timeout):
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
        return self._server.ends[self.pid]

    def send_signal(self, signum: int) -> None:
        """Send a signal, unless it has ended."""
        if self.returncode is None:
            os.kill(self.pid, signum)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)


class ForkServer:
    """A process that forks others. There is one for a pytest process."""

    _only: ForkServer | None = None

    def __init__(self) -> None:
        self.ends: dict[int, int] = {}
        self.changed = threading.Condition()
        self._started: list[int] = []
        self._alone = threading.Lock()  # one request at a time
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.support.fork_server", str(other.fileno())]
        # It ends, and its processes with it, when this process has closed the socket, or is gone.
        self._process = subprocess.Popen(command, cwd=ROOT, pass_fds=[other.fileno()])
        other.close()
        threading.Thread(target=self._read, daemon=True).start()
        atexit.register(self._stop)

    @classmethod
    def get(cls) -> ForkServer:
        """Return the server of this process."""
        if cls._only is None:
            cls._only = cls()
        return cls._only

    def spawn(
        self,
        module: str,
        *arguments: str,
        env: dict[str, str],
        stdout: int,
        stderr: int,
        stdin: int | None = None,
        cwd: Path = ROOT,
    ) -> ForkedProcess:
        """Run a module as `python -m` does.

        Args:
            module: The module.
            arguments: Its arguments.
            env: Its whole environment.
            stdout: A file descriptor.
            stderr: A file descriptor.
            stdin: A file descriptor. The default is an empty input.
            cwd: Its working directory. The root of the repository stays on `sys.path`.
        """
        request = json.dumps({"module": module, "arguments": arguments, "env": env, "cwd": str(cwd)}).encode()
        with Path(os.devnull).open() as nothing, self._alone:
            socket.send_fds(self._socket, [request], [nothing.fileno() if stdin is None else stdin, stdout, stderr])
            with self.changed:
                if not self.changed.wait_for(lambda: self._started, _START_SECONDS):
                    raise TimeoutError(f"the fork server has not started {module} within {_START_SECONDS} s")
                return ForkedProcess(self, self._started.pop())

    def run(
        self, module: str, *arguments: str, env: dict[str, str], stdin: str = "", cwd: Path = ROOT, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """Run a module to its end. Return its exit code and its output, as `subprocess.run` does."""
        with tempfile.TemporaryFile() as input_, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
            input_.write(stdin.encode())
            input_.seek(0)
            process = self.spawn(
                module, *arguments, env=env, stdin=input_.fileno(), stdout=out.fileno(), stderr=errors.fileno(), cwd=cwd
            )
            try:
                code = process.wait(timeout)
            finally:
                process.kill()
            out.seek(0)
            errors.seek(0)
            return subprocess.CompletedProcess([module, *arguments], code, out.read().decode(), errors.read().decode())

    def _read(self) -> None:
        while raw := self._socket.recv(_MAX_MESSAGE):
            message = json.loads(raw)
            with self.changed:
                if "ended" in message:
                    self.ends[message["ended"]] = message["code"]
                else:
                    self.ends.pop(message["started"], None)  # the PID of one that ended long ago
                    self._started.append(message["started"])
                self.changed.notify_all()

    def _stop(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._process.wait(timeout=10)


async def spawn_with_pipe(
    module: str, *arguments: str, env: dict[str, str]
) -> tuple[ForkedProcess, asyncio.StreamReader]:
    """Run a module. Return its process, and a reader of its output."""
    reading, writing = os.pipe()
    try:
        process = ForkServer.get().spawn(module, *arguments, env=env, stdout=writing, stderr=2)
    finally:
        os.close(writing)
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, os.fdopen(reading, "rb", buffering=0))
    return process, reader


def serve(control: socket.socket) -> dict[str, Any] | None:
    """Fork a process for each request. Return the request in a process that was forked, and None at the end."""
    children: dict[int, int] = {}  # a descriptor that becomes readable at the end of a process, and its PID
    while True:
        for descriptor in select.select([control.fileno(), *children], [], [])[0]:
            if descriptor != control.fileno():
                _, status = os.waitpid(children[descriptor], 0)
                end = {"ended": children.pop(descriptor), "code": os.waitstatus_to_exitcode(status)}
                os.close(descriptor)
                control.send(json.dumps(end).encode())
                continue
            raw, ancillary, _, _ = control.recvmsg(_MAX_MESSAGE, socket.CMSG_LEN(3 * array.array("i").itemsize))
            if not raw:
                for pid in children.values():
                    os.kill(pid, signal.SIGKILL)
                return None
            outputs = array.array("i", b"".join(data for *_, data in ancillary))
            pid = os.fork()
            if not pid:
                for one in (control.fileno(), *children):
                    os.close(one)
                for number, output in enumerate(outputs):
                    os.dup2(output, number)
                    os.close(output)
                request: dict[str, Any] = json.loads(raw)
                return request
            for output in outputs:
                os.close(output)
            children[os.pidfd_open(pid)] = pid
            control.send(json.dumps({"started": pid}).encode())


def main() -> None:
    """Serve, or be the process that was asked for."""
    for name in PRELOADED:
        __import__(name)
    control = socket.socket(fileno=int(sys.argv[1]))
    request = serve(control)
    if request is None:
        return
    control.detach()
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    if request["cwd"] != sys.path[0]:
        sys.path.insert(0, request["cwd"])
    random.seed()
    sys.argv = [request["module"], *request["arguments"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
