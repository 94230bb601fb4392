"""Plain functions as jobs: in processes of their own, for what computes for long and would hold the interpreter's lock.

A process is a new interpreter, never a fork of the worker, whose threads and event loop no fork would survive. It is
started when the first job needs it, and has one job after the other. Both sides send lines of JSON through a socket, no
pickles: the process imports the function by its name, and reads and writes arguments and result by the job's own types.
When the worker dies, by whatever, the socket and the standard input of the process close, and it ends; see `child.py`.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import functools
import inspect
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from worker.attempt.offload import await_offloaded
from worker.attempt.process_protocol import error_of, handle_record
from worker.attempt.threads import Threads
from worker.errors import JobInterrupted, JobProcessDied, RegistrationError
from worker.job.trace_context import headers_here

if TYPE_CHECKING:
    from worker.attempt.context import JobContext

logger = logging.getLogger("longhaul.processes")

#: The child has the parent's paths before it imports anything of ours: it finds the same modules.
_BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[3]); from worker.attempt.process_main import main; main()"
_END_SECONDS = 2.0
_WHERE_SECONDS = 0.5


class Process:
    """One process, as its parent has it.

    Attributes:
        settings_sent: the last ones.
        used: whether it has had a job.

    Raises:
        JobProcessDied: it has ended before it was ready.
    """

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            level = logging.getLogger().getEffectiveLevel()
            number = theirs.fileno()
            self._child = subprocess.Popen(  # noqa: S603 - our own interpreter
                [sys.executable, "-c", _BOOT, str(number), str(level), json.dumps(sys.path)],
                stdin=subprocess.PIPE,  # nothing is ever written there: it closes when we die
                pass_fds=[number],
            )
        self._socket = ours
        self._lines = ours.makefile("rb")
        self._sending = threading.Lock()
        self.settings_sent: object = None
        self.used = False
        if next(self.messages(), None) is None:
            raise self.died("before it was ready: its last words are on standard error")

    @property
    def pid(self) -> int:
        """Its id."""
        return self._child.pid

    @property
    def ended(self) -> bool:
        """Whether it has."""
        return self._child.poll() is not None

    def send(self, **message: Any) -> None:
        """Send a message; one to a process that has ended is lost, as `messages` tells."""
        with self._sending, contextlib.suppress(OSError):
            self._socket.sendall(json.dumps(message).encode() + b"\n")

    def messages(self) -> Iterator[dict[str, Any]]:
        """Yield what it says, until it ends."""
        with contextlib.suppress(OSError, ValueError):  # ended, in the middle of a line perhaps
            for line in self._lines:
                yield json.loads(line)

    def died(self, when: str) -> JobProcessDied:
        """Close what is left of it, and return the error that tells how it ended."""
        self.kill()
        code = self._child.wait()
        self._close()
        if code >= 0:
            return JobProcessDied(f"its process {self.pid} ended with exit status {code} {when}")
        hint = ", perhaps for want of memory" if -code == signal.SIGKILL else ""
        return JobProcessDied(f"its process {self.pid} was ended by {signal.Signals(-code).name} {when}{hint}")

    def kill(self) -> None:
        """End it at once, unless it has ended by itself a moment ago."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(timeout=0.05)
        self._child.kill()

    def end(self) -> None:
        """End it: it has no job."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        try:
            self._child.wait(timeout=_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._close()

    def _close(self) -> None:
        self._lines.close()
        self._socket.close()
        if self._child.stdin is not None:
            self._child.stdin.close()


class ProcessCall:
    """A call of a job's plain function in a process.

    Args:
        pool: has the processes.
        request: what the child has to know, see `child.Call`.
        ctx: the job's context here; it hears of progress.
    """

    def __init__(self, pool: Processes, request: Mapping[str, Any], ctx: JobContext) -> None:
        self._pool = pool
        self._request = dict(request)
        self._ctx = ctx
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._process: Process | None = None  # as long as it has this call
        self._interrupted = False
        self._where: Future[str] = Future()
        context = contextvars.copy_context()  # lines of its log are of this job
        self._thread = pool.threads.start(functools.partial(context.run, self._run))
        self.future = self._thread.future

    def _run(self) -> str:
        """Have a process do it, from a thread. Returns the result as JSON text."""
        while True:
            process = self._pool.take()
            with self._lock:
                if self._interrupted:
                    self._pool.give_back(process)
                    raise JobInterrupted
                self._process = process
            try:
                self._send(process)
                begun, outcome = self._hear(process)
            finally:
                with self._lock:
                    self._process = None
            if outcome is None:
                error = process.died(f"in the middle of {self._request['job']}")
                if begun or not process.used:
                    raise error
                logger.warning("%s: %s before it had begun: another one does it", self._request["job"], error)
                continue
            self._pool.give_back(process)
            if outcome[0] == "error":
                raise error_of(outcome[1])
            return str(outcome[1])

    def _hear(self, process: Process) -> tuple[bool, tuple[str, Any] | None]:
        """Listen to a process until the call's end. Returns whether it has begun, and how it ended; None: with it."""
        begun = False
        for message in process.messages():
            kind, value = next(iter(message.items()))
            if kind == "begun":
                begun = True
            elif kind == "log":
                handle_record(value)
            elif kind == "progress":
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    self._loop.call_soon_threadsafe(self._ctx.progress, *value)
            elif kind == "where":
                if not self._where.done():
                    self._where.set_result(value)
            else:
                return begun, (kind, value)
        return begun, None

    def _send(self, process: Process) -> None:
        settings = self._ctx.settings
        if process.settings_sent is not settings:
            self._request["settings"] = settings.model_dump(mode="json")
            process.settings_sent = settings
        process.send(call=self._request)

    def interrupt(self) -> None:
        """Raise `JobInterrupted` in it, once; one that has not begun does not begin."""
        if self.future.cancel():
            return
        with self._lock:
            if not self._interrupted and self._process is not None:
                self._process.send(interrupt=True)
            self._interrupted = True

    async def give_up(self) -> str:
        """Kill its process."""
        with self._lock:
            process, self._interrupted = self._process, True
            if process is None:
                return ""
            process.send(where=True)
        await asyncio.wait({asyncio.wrap_future(self._where)}, timeout=_WHERE_SECONDS)
        with self._lock:
            if self._process is process:
                os.kill(process.pid, signal.SIGKILL)
        where = f", where it stood at\n{self._where.result()}\n" if self._where.done() else ", which did not answer. "
        return f"Its process {process.pid} was killed{where}"


class Processes:
    """Processes that run plain functions, so many at a time; each is started when it is needed, and kept.

    Args:
        most: how many; what comes beyond waits.
    """

    def __init__(self, most: int) -> None:
        self.threads = Threads(most)
        self._idle: list[Process] = []
        self._lock = threading.Lock()

    def take(self) -> Process:
        """Return a process that has no job.

        Raises:
            JobProcessDied: it could not be started.
        """
        while True:
            with self._lock:
                process = self._idle.pop() if self._idle else None
            if process is None:
                return Process()
            if not process.ended:
                return process
            logger.warning("process %d for jobs ended while it had none: replaced", process.pid)
            process.end()

    def give_back(self, process: Process) -> None:
        """Take a process back: its job has ended."""
        process.used = True
        with self._lock:
            self._idle.append(process)

    def end_idle(self) -> None:
        """End those that have no job; they are started again when they are needed."""
        with self._lock:
            idle, self._idle = self._idle, []
        for process in idle:
            process.end()


_pools: dict[int, Processes] = {}


def _pool(most: int | None) -> Processes:
    if most is None:
        most = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if most not in _pools:
        if not _pools:
            atexit.register(end_idle_processes)
        _pools[most] = Processes(most)
    return _pools[most]


def end_idle_processes() -> None:
    """End the processes that have no job: a worker is at its end."""
    for pool in list(_pools.values()):
        pool.end_idle()


def in_process(job: str, function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Return an async function that runs a plain one in a process of this worker, `worker.max_job_processes` at a time.

    A cancellation, also that of a timeout, is passed on: `JobInterrupted` is raised in the function, and its end is
    waited for. Arguments and result go through JSON by the types of its signature; an exception comes back as one of
    the same class, where that can be made again from what it was given.

    Args:
        job: the job's name.
        function: its body, in a module that a process can import.

    Raises:
        RegistrationError: the function is none that a process could run.
    """
    _check(job, function)

    @functools.cache
    def codec() -> Any:
        from worker.job.definition import Job

        return Job(function=function, name=job)

    @functools.wraps(function)
    async def wrapper(ctx: JobContext, *args: Any, **kwargs: Any) -> Any:
        request = {
            "module": function.__module__,
            "function": function.__qualname__,
            "job": ctx.job,
            "arguments": codec().encode_arguments_json(args, kwargs),
            "run_id": ctx.run_id,
            "attempt": ctx.attempt,
            "enqueued_at": ctx.enqueued_at.isoformat(),
            "headers": {**ctx.headers, **headers_here()},
        }
        call = ProcessCall(_pool(ctx.settings.worker.max_job_processes), request, ctx)
        return codec().decode_result_json(await await_offloaded(call, ctx))

    return wrapper


def _check(job: str, function: Callable[..., Any]) -> None:
    """Refuse what no other process can find."""
    place = f"{function.__module__}.{function.__qualname__}"
    if inspect.iscoroutinefunction(function):
        raise RegistrationError(
            f"job {job}: process=True is for plain functions, and {place} is an `async def`: make it a `def`, or leave "
            f"process=True out, and have what computes for long in a job of its own"
        )
    if function.__module__ == "__main__":
        raise RegistrationError(
            f"job {job}: process=True: {place} is in the script that was started, which a process cannot import: move "
            f"it to a module, e.g. of worker.packages"
        )
    if "<" in function.__qualname__ or function.__module__ not in sys.modules:
        raise RegistrationError(
            f"job {job}: process=True: a process cannot import {place}: define it at the top of a module, by `def`"
        )
