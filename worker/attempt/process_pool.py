"""Processes that run plain functions, for long computations that would hold the interpreter's lock.

A process is a new interpreter, not a fork of the worker, whose threads and event loop would not survive a fork. It is
started when the first call needs it, and then runs one call after the other. Both sides exchange lines of JSON over a
socket, never pickles: the process imports the function by its name, and converts arguments and result by the types of
the job. When the worker dies, the kernel ends the process group of each process; see `process_main.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import itertools
import json
import logging
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from typing import Any

from worker.attempt.process_protocol import handle_record, make_error
from worker.attempt.threads import ThreadPool
from worker.errors import JobInterrupted, JobProcessDied, format_error
from worker.settings import Settings

logger = logging.getLogger("longhaul.processes")

#: The process gets the worker's sys.path before it imports anything of ours, so that it finds the same modules.
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[3]); from worker.attempt.process_main import main; main()"
_END_SECONDS = 2.0
_STACK_SECONDS = 0.5
_OWN_END_SECONDS = 0.05
_POLL_SECONDS = 0.5
_RECEIVE_BYTES = 1 << 18


@dataclass(frozen=True)
class ProcessRequest:
    """One call of a job's function in a process.

    Attributes:
        module: module of the function.
        function: qualified name of the function in it.
        job: name of the job.
        arguments: text of a JSON object, by name.
        run_id: id of the run.
        attempt: number of the attempt.
        enqueued_at: time in ISO 8601.
        headers: headers of the run, and the current values of the propagated context variables.
    """

    module: str
    function: str
    job: str
    arguments: str
    run_id: str
    attempt: int
    enqueued_at: str
    headers: dict[str, str]


class JobProcess:
    """The worker's handle of one process.

    Attributes:
        settings_sent: the settings that were sent last.
        is_used: whether it has run a call.

    Raises:
        JobProcessDied: It ended before it was ready.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            level = logging.getLogger().getEffectiveLevel()
            number = theirs.fileno()
            self._child = subprocess.Popen(  # noqa: S603 - our own interpreter
                [sys.executable, "-c", _BOOT, str(number), str(level), json.dumps(sys.path)],
                stdin=subprocess.PIPE,  # nothing is ever written to it: it closes when the worker dies
                pass_fds=[number],
                start_new_session=True,  # a process group of its own, which ends with it
            )
        self._socket = ours
        self._pidfd: int | None = os.pidfd_open(self._child.pid) if hasattr(os, "pidfd_open") else None
        self._poll = select.poll()
        self._poll.register(ours, select.POLLIN)
        if self._pidfd is not None:
            self._poll.register(self._pidfd, select.POLLIN)
        self._received = bytearray()
        self._sending = threading.Lock()
        self.settings_sent: Settings | None = None
        self.is_used = False
        if next(self.messages(), None) is None:
            raise self.end_dead("before it was ready: see its standard error")

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._child.pid

    @property
    def has_ended(self) -> bool:
        """Whether it has ended."""
        return self._child.poll() is not None

    def send(self, **message: Any) -> None:
        """Send a message. A message to a process that has ended is lost; `messages` then ends."""
        with self._sending, contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yield its messages until it ends, or sends a line that is not a message.

        A process that it has forked may hold the socket open after its end, so its own end is watched too.
        """
        while (line := self._read_line()) is not None:
            try:
                message = json.loads(line)
            except ValueError:
                return
            if not isinstance(message, dict):
                return
            yield message

    def _read_line(self) -> bytes | None:
        searched = 0
        while (end := self._received.find(b"\n", searched)) < 0:
            searched = len(self._received)
            self._poll.poll(_POLL_SECONDS * 1000)
            has_ended = self.has_ended  # read before the last receive: messages sent before the end count
            try:
                part = self._socket.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if has_ended:
                    return None
                continue
            except OSError:
                return None
            if not part:
                return None
            self._received += part
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    def end_dead(self, when: str) -> JobProcessDied:
        """End a process that has died or cannot be used, with its group. Return the error that describes its end."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout=_OWN_END_SECONDS)  # its own exit status is more informative than that of a kill
        self.kill()
        code = self._child.wait()
        self._close()
        if code >= 0:
            return JobProcessDied(f"its process {self.pid} ended with exit status {code} {when}")
        hint = ", perhaps because it ran out of memory" if -code == signal.SIGKILL else ""
        return JobProcessDied(f"its process {self.pid} was ended by {signal.Signals(-code).name} {when}{hint}")

    def kill(self) -> None:
        """End it and all processes that it has started, at once."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def end(self) -> None:
        """End the process, which runs no call."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout=_END_SECONDS)
        self.kill()  # including processes that its calls have started
        self._child.wait()
        self._close()

    def _close(self) -> None:
        self._socket.close()
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        if self._child.stdin is not None:
            self._child.stdin.close()


class ProcessCall:
    """A call of a job's function in a process.

    Args:
        pool: the processes.
        request: the function and its arguments.
        settings: the worker's, for the context.
        on_progress: called in the event loop with the arguments of `ctx.progress`.

    Attributes:
        future: the outcome of the call, with the result as JSON text.
    """

    def __init__(
        self,
        pool: ProcessPool,
        request: ProcessRequest,
        settings: Settings,
        on_progress: Callable[[int, int | None], None],
    ) -> None:
        self._pool = pool
        self._request = request
        self._settings = settings
        self._on_progress = on_progress
        self._id = next(pool.call_ids)
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._process: JobProcess | None = None  # while it runs this call
        self._interrupted = False
        self._stack: Future[str] = Future()
        context = contextvars.copy_context()  # log records of the process belong to this job
        self.future = pool.threads.start(functools.partial(context.run, self._run)).future

    def _run(self) -> str:
        """Run the call in a process, from a thread. Return the result as JSON text."""
        job = self._request.job
        while True:
            process = self._pool.take()
            with self._lock:
                if self._interrupted:
                    self._pool.give_back(process)
                    raise JobInterrupted
                self._process = process
            try:
                self._send(process)
                has_begun, answer = self._receive(process)
            finally:
                with self._lock:
                    self._process = None
            if answer is None:
                died = process.end_dead(f"in the middle of {job}")
                if has_begun or not process.is_used:
                    raise died
                logger.warning("%s: %s before the call began: another process runs it", job, died)
                continue
            self._pool.give_back(process)
            if isinstance(answer, BaseException):
                raise answer
            return answer

    def _receive(self, process: JobProcess) -> tuple[bool, str | BaseException | None]:
        """Handle messages until the call ends.

        Returns:
            Whether the call has begun, and its answer: the result as JSON text, or the exception. The answer is None if
            the process has ended, or must be ended because it answered another call, as a fork of it does, or sent an
            invalid message.
        """
        has_begun = False
        for message in process.messages():
            kind, call = message.get("kind"), message.get("call")
            value: Any = message.get("value")
            if kind != "log" and call != self._id:
                logger.error("answer of another call process=%d call=%s expected=%d", process.pid, call, self._id)
                return has_begun, None
            try:
                if kind == "result" and isinstance(value, str):
                    return has_begun, value
                if kind == "error":
                    return has_begun, make_error(value)
                has_begun = has_begun or kind == "begun"
                self._handle(kind, value)
            except (KeyError, TypeError, ValueError) as error:
                logger.error("unreadable message process=%d error=%s", process.pid, format_error(error))
                return has_begun, None
        return has_begun, None

    def _handle(self, kind: Any, value: Any) -> None:
        """Handle a message that does not end the call.

        Raises:
            KeyError, TypeError, ValueError: The message is invalid.
        """
        if kind == "log":
            handle_record(value)
        elif kind == "progress":
            done, total = value
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._on_progress, int(done), None if total is None else int(total))
        elif kind == "stack":
            if not self._stack.done():
                self._stack.set_result(str(value))
        elif kind != "begun":
            raise ValueError(f"kind {kind!r}")

    def _send(self, process: JobProcess) -> None:
        message: dict[str, Any] = {"call": self._id, "request": asdict(self._request)}
        if process.settings_sent is not self._settings:
            message["settings"] = self._settings.model_dump(mode="json")
            process.settings_sent = self._settings
        process.send(**message)

    def interrupt(self) -> None:
        """Raise `JobInterrupted` in the function, once. A call that has not begun does not begin."""
        if self.future.cancel():
            return
        with self._lock:
            if not self._interrupted and self._process is not None:
                self._process.send(interrupt=self._id)
            self._interrupted = True

    async def abandon(self) -> str:
        """Kill its process. Returns the stack of the function, for the log."""
        with self._lock:
            process, self._interrupted = self._process, True
            if process is None:
                return ""
            process.send(stack=self._id)
        await asyncio.wait({asyncio.wrap_future(self._stack)}, timeout=_STACK_SECONDS)
        with self._lock:
            if self._process is process:
                process.kill()
        stack = f". Stack:\n{self._stack.result()}\n" if self._stack.done() else "; it did not report its stack. "
        return f"Its process {process.pid} was killed{stack}"


class ProcessPool:
    """Processes that run plain functions. Each is started when it is needed, and reused.

    Args:
        max_processes: calls that run at once; further calls wait. None for the number of CPUs of this process.

    Attributes:
        threads: one thread waits for each call.
        call_ids: ids of calls.
    """

    def __init__(self, max_processes: int | None) -> None:
        self.max_processes = max_processes or count_cpus()
        self.threads = ThreadPool(self.max_processes)
        self.call_ids = itertools.count(1)
        self._idle: list[JobProcess] = []
        self._lock = threading.Lock()
        self._closed = False

    def start(
        self, request: ProcessRequest, settings: Settings, on_progress: Callable[[int, int | None], None]
    ) -> ProcessCall:
        """Run a call as soon as a process is free; see `ProcessCall`."""
        return ProcessCall(self, request, settings, on_progress)

    def take(self) -> JobProcess:
        """Return a process that runs no call.

        Raises:
            JobProcessDied: It could not be started.
        """
        while True:
            with self._lock:
                process = self._idle.pop() if self._idle else None
            if process is None:
                return JobProcess()
            if not process.has_ended:
                return process
            logger.warning("idle process %d for jobs has ended: replaced", process.pid)
            process.end()

    def give_back(self, process: JobProcess) -> None:
        """Return a process whose call has ended to the pool."""
        process.is_used = True
        with self._lock:
            if not self._closed:
                self._idle.append(process)
                return
        process.end()

    def close(self) -> None:
        """End the processes: idle ones now, the others when their calls have ended."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for process in idle:
            process.end()
        self.threads.close()


def count_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
