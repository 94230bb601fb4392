"""The process that runs plain functions, started by `process_pool.py`.

The main thread runs one function after the other; a second thread listens to the worker. An interruption is a signal to
the main thread whose handler raises, so that it also ends a wait in the kernel.

When the worker dies, its socket closes, and the listening thread ends the process. That thread cannot run while the
function holds the interpreter's lock, as a regular expression does, and it ends no process that the function has
started. So standard input is a pipe whose other end only the worker holds: when it closes, the kernel sends SIGIO to
the whole process group. `PR_SET_PDEATHSIG` solves neither problem: it does not reach child processes, and it already
fires when the worker's thread that started this process ends.
"""

from __future__ import annotations

import contextlib
import contextvars
import fcntl
import importlib
import json
import logging
import os
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from queue import SimpleQueue
from typing import Any

from worker.attempt.process_pool import ProcessRequest
from worker.attempt.process_protocol import describe_error, describe_record
from worker.attempt.run_logger import RunLogger
from worker.errors import JobInterrupted, UsageError
from worker.job.arguments import JobCodec
from worker.job.definition import Job
from worker.job.propagation import AttemptFields, apply_headers, current_attempt, current_trace_id
from worker.settings import Settings

_INTERRUPT = signal.SIGUSR1
#: Exit status of a fork that returned from the job's function.
_FORKED = 70


@dataclass
class RunningCall:
    """One call that the worker has requested.

    Attributes:
        id: number of the call; each answer carries it.
        request: the function and its arguments.
        settings: settings of the worker; None if they are unchanged since the previous call.
        runs: whether the function runs.
        is_interrupted: whether the worker has requested its interruption.
        has_raised: whether the interruption was raised.
    """

    id: int
    request: ProcessRequest
    settings: dict[str, Any] | None = None
    runs: bool = False
    is_interrupted: bool = False
    has_raised: bool = False


class ProcessContext:
    """The context of a job in a process: identity, settings, and progress.

    Attributes:
        run_id: id of the run.
        job: name of the job.
        attempt: 1 for the first attempt.
        enqueued_at: aware time.
        headers: header texts of the run, by name.
        fields: the attempt, for the log.
    """

    def __init__(self, request: ProcessRequest, settings: dict[str, Any], send: Callable[..., None]) -> None:
        self.run_id = request.run_id
        self.job = request.job
        self.attempt = request.attempt
        self.enqueued_at = datetime.fromisoformat(request.enqueued_at)
        self.headers = request.headers
        self.fields = AttemptFields(request.run_id, request.job, request.attempt)
        self._settings = settings
        self._send = send

    @cached_property
    def log(self) -> RunLogger:
        """The log of the run; see `JobContext.log`."""
        return RunLogger(self.fields)

    @cached_property
    def settings(self) -> Settings:
        """The worker's settings."""
        return Settings.model_validate(self._settings)

    def progress(self, done: int, total: int | None = None) -> None:
        """Report progress; see `JobContext.progress`."""
        self._send("progress", [done, total])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise UsageError(
            f"ctx.{name}: a job in a process has run_id, job, attempt, enqueued_at, headers, log, settings, progress; "
            f"sessions and loops need the event loop: read and write in an async job"
        )


class JobProcessMain:
    """Runs one function after the other.

    Args:
        channel: socket to the worker.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._pid = os.getpid()
        self._calls: SimpleQueue[RunningCall | None] = SimpleQueue()
        self._call: RunningCall | None = None  # received, begun or not
        self._settings: dict[str, Any] = {}
        self._sending = threading.RLock()
        self._main_sends = False

    @property
    def is_fork(self) -> bool:
        """Whether this is a process that a job has forked."""
        return os.getpid() != self._pid

    def serve(self) -> None:
        """Run the calls that arrive until the worker closes the socket."""
        signal.signal(_INTERRUPT, lambda *_: self._raise_if_interrupted())
        for others in (signal.SIGINT, signal.SIGTERM):
            # The worker handles these signals for its jobs. Not SIG_IGN, which processes that a job starts would
            # inherit.
            signal.signal(others, lambda *_: None)
        threading.Thread(target=self._listen, daemon=True).start()
        self.send("ready", self._pid)
        while (call := self._calls.get()) is not None:
            self._settings = call.settings or self._settings
            kind, value = self._run(call)
            if self.is_fork:
                os._exit(_FORKED)  # the function returned in the fork as well: only the parent may answer the call
            self._call = None
            self.send(kind, value, call=call.id)

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            for line in self._channel.makefile("rb"):
                message = json.loads(line)
                if "request" in message:
                    request = ProcessRequest(**message["request"])
                    self._call = call = RunningCall(message["call"], request, message.get("settings"))
                    self._calls.put(call)
                elif self._call is None:
                    continue
                elif message.get("interrupt") == self._call.id:
                    self._call.is_interrupted = True
                    signal.pthread_kill(threading.main_thread().ident or 0, _INTERRUPT)
                elif message.get("stack") == self._call.id:
                    self.send("stack", self._stack(), call=self._call.id)
        if self._call is not None:
            os._exit(1)
        self._calls.put(None)

    def _raise_if_interrupted(self) -> None:
        call = self._call
        if call is not None and call.runs and call.is_interrupted and not call.has_raised and not self._main_sends:
            call.has_raised = True
            raise JobInterrupted

    def _run(self, call: RunningCall) -> tuple[str, Any]:
        """Run a call. Return the kind and the value of its answer."""
        try:
            codec, function = _find(call.request)
            arguments = codec.decode_arguments([], json.loads(call.request.arguments))
            self.send("begun", call=call.id)

            def send_for_call(kind: str, value: Any) -> None:
                self.send(kind, value, call=call.id)

            ctx = ProcessContext(call.request, self._settings, send_for_call)
            try:
                call.runs = True
                self._raise_if_interrupted()
                value = contextvars.copy_context().run(_run_in_context, call.request, function, ctx, arguments)
            finally:
                call.runs = False
            return "result", codec.encode_result(value)
        except BaseException as error:  # noqa: BLE001 - sent to the worker, which decides
            call.runs = False  # `JobInterrupted` may have been raised just before the line above
            return "error", describe_error(error)

    def send(self, kind: str, value: Any = None, *, call: int | None = None) -> None:
        """Send a message. An interruption that arrives meanwhile is raised afterwards, so that no message is cut.

        Raises:
            UsageError: This process is a fork, which must not use the connection to the worker.
        """
        if self.is_fork:
            raise UsageError(f"{kind}: a process that a job has forked cannot talk to the worker; use it in the job")
        text = json.dumps({"kind": kind, "value": value, "call": call}).encode() + b"\n"
        is_main = threading.current_thread() is threading.main_thread()
        with self._sending:
            self._main_sends = is_main
            try:
                self._channel.sendall(text)
            finally:
                self._main_sends = False
        if is_main:
            self._raise_if_interrupted()

    def _stack(self) -> str:
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        lines = [] if frame is None else traceback.format_stack(frame)
        inside = [place for place, line in enumerate(lines) if f"in {_run_in_context.__name__}" in line]
        return "".join(lines[inside[-1] + 1 :] if inside else lines).rstrip()


class WorkerLogHandler(logging.Handler):
    """Sends log records to the worker; a fork writes its records to standard error.

    Args:
        main: sends messages.
    """

    def __init__(self, main: JobProcessMain) -> None:
        super().__init__()
        self._main = main

    def emit(self, record: logging.LogRecord) -> None:
        """Send a record."""
        try:
            if not self._main.is_fork:
                self._main.send("log", describe_record(record))
            elif logging.lastResort is not None:
                logging.lastResort.handle(record)
        except Exception:  # noqa: BLE001 - as any handler: a record that cannot be written is no error of the job
            self.handleError(record)


def _find(request: ProcessRequest) -> tuple[JobCodec, Callable[..., Any]]:
    """Return the codec of a job, for its types, and its function."""
    found: Any = importlib.import_module(request.module)
    for part in request.function.split("."):
        found = getattr(found, part)
    if isinstance(found, Job):
        return found.codec, found.function
    return JobCodec(request.job, found), found


def _run_in_context(
    request: ProcessRequest, function: Callable[..., Any], ctx: ProcessContext, arguments: dict[str, Any]
) -> Any:
    apply_headers(request.headers)
    ctx.fields.trace_id = current_trace_id()
    current_attempt.set(ctx.fields)
    return function(ctx, **arguments)


def _end_with_worker() -> None:
    """Have the kernel end this process group when standard input closes. A job that reads it finds it empty."""
    lifeline = os.dup(0)
    with open(os.devnull) as nothing:  # noqa: PTH123 - a descriptor is wanted
        os.dup2(nothing.fileno(), 0)
    with contextlib.suppress(OSError):
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def main() -> None:
    """Run as a process of a worker. Arguments: descriptor of the socket, level of the log."""
    _end_with_worker()
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        process = JobProcessMain(channel)
        root = logging.getLogger()
        root.setLevel(int(sys.argv[2]))
        root.handlers[:] = [WorkerLogHandler(process)]
        process.serve()
