"""The process that runs plain functions: what `processes.py` starts.

Its main thread runs them, one after the other; another one listens to the parent. An interruption is a signal to the
main thread, whose handler raises, so that it also ends a wait in the kernel. When the parent dies, the socket closes,
and the listening thread ends the process; should the function hold the interpreter's lock just then, as a regular
expression does, the kernel does: standard input is a pipe that only the parent holds, and SIGIO comes when it closes.
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

from worker.attempt.process_protocol import describe_error, describe_record
from worker.errors import JobInterrupted, UsageError
from worker.job.definition import Job
from worker.job.trace_context import enter
from worker.settings import Settings

_INTERRUPT = signal.SIGUSR1


@dataclass
class Call:
    """One call, as the parent asks for it.

    Attributes:
        module: where the function is.
        function: its qualified name there.
        job: name of the job.
        arguments: JSON object, by name.
        run_id: id of the run.
        attempt: number of the try.
        enqueued_at: ISO 8601.
        headers: of the run, and of the context variables that are carried, as they are now.
        settings: the worker's; None where they are those of the call before.
        begun: whether the function runs.
        interrupted: whether it is to be interrupted.
        raised: whether it was.
    """

    module: str
    function: str
    job: str
    arguments: str
    run_id: str
    attempt: int
    enqueued_at: str
    headers: dict[str, str]
    settings: dict[str, Any] | None = None
    begun: bool = False
    interrupted: bool = False
    raised: bool = False


class ChildContext:
    """What a job in a process is handed: what the context says, and progress.

    Attributes:
        run_id: id of the run.
        job: name of the job.
        attempt: 1 for the first try.
        enqueued_at: aware time.
        headers: texts by name that came with the run.
        settings: the worker's.
    """

    def __init__(self, call: Call, settings: dict[str, Any], tell: Callable[..., None]) -> None:
        self.run_id = call.run_id
        self.job = call.job
        self.attempt = call.attempt
        self.enqueued_at = datetime.fromisoformat(call.enqueued_at)
        self.headers = call.headers
        self._settings = settings
        self._tell = tell

    @cached_property
    def settings(self) -> Settings:
        """The worker's settings."""
        return Settings.model_validate(self._settings)

    def progress(self, done: int, total: int | None = None) -> None:
        """Say how far the job is; see `JobContext.progress`."""
        self._tell(progress=[done, total])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        raise UsageError(
            f"ctx.{name}: a job in a process has run_id, job, attempt, enqueued_at, headers, settings and progress(); "
            f"sessions and loops are the event loop's: have an async job read and write"
        )


class Child:
    """Runs one function after the other.

    Args:
        channel: to the parent.
    """

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._calls: SimpleQueue[Call | None] = SimpleQueue()
        self._call: Call | None = None  # that is here, begun or not
        self._settings: dict[str, Any] = {}
        self._sending = threading.RLock()
        self._main_sends = False

    def serve(self) -> None:
        """Run what comes, until the parent wants no more."""
        signal.signal(_INTERRUPT, lambda *_: self._raise_if_asked())
        for others in (signal.SIGINT, signal.SIGTERM):
            # For the worker, which tells us what they mean for our job. Not SIG_IGN, which what a job starts inherits.
            signal.signal(others, lambda *_: None)
        threading.Thread(target=self._listen, daemon=True).start()
        self.tell(ready=os.getpid())
        while (call := self._calls.get()) is not None:
            self._settings = call.settings or self._settings
            outcome = self._outcome(call)
            self._call = None
            self.tell(**outcome)

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            for line in self._channel.makefile("rb"):
                message = json.loads(line)
                if "call" in message:
                    self._call = call = Call(**message["call"])
                    self._calls.put(call)
                elif "interrupt" in message and self._call is not None:
                    self._call.interrupted = True
                    signal.pthread_kill(threading.main_thread().ident or 0, _INTERRUPT)
                elif "where" in message:
                    self.tell(where=self._where())
        if self._call is not None:
            os._exit(1)
        self._calls.put(None)

    def _raise_if_asked(self) -> None:
        call = self._call
        if call is not None and call.begun and call.interrupted and not call.raised and not self._main_sends:
            call.raised = True
            raise JobInterrupted

    def _outcome(self, call: Call) -> dict[str, Any]:
        try:
            job, function = _found(call)
            arguments = job.decode_arguments([], json.loads(call.arguments))
            self.tell(begun=True)
            ctx = ChildContext(call, self._settings, self.tell)
            try:
                call.begun = True
                self._raise_if_asked()
                value = contextvars.copy_context().run(_in_context, call, function, ctx, arguments)
            finally:
                call.begun = False
            return {"result": job.encode_result(value)}
        except BaseException as error:  # noqa: BLE001 - told to the parent, which judges it
            call.begun = False  # `JobInterrupted` may have been raised just before it was so
            return {"error": describe_error(error)}

    def tell(self, **message: Any) -> None:
        """Send a message; an interruption that comes meanwhile is raised when that is done: half a line is none."""
        text = json.dumps(message).encode() + b"\n"
        is_main = threading.current_thread() is threading.main_thread()
        with self._sending:
            self._main_sends = is_main
            try:
                self._channel.sendall(text)
            finally:
                self._main_sends = False
        if is_main:
            self._raise_if_asked()

    def _where(self) -> str:
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        lines = [] if frame is None else traceback.format_stack(frame)
        inside = [place for place, line in enumerate(lines) if "in _in_context" in line]
        return "".join(lines[inside[-1] + 1 :] if inside else lines).rstrip()


class ToParent(logging.Handler):
    """Sends each line of the log to the parent.

    Args:
        tell: sends a message.
    """

    def __init__(self, tell: Callable[..., None]) -> None:
        super().__init__()
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Send a line."""
        self._tell(log=describe_record(record))


def _found(call: Call) -> tuple[Job[..., Any], Callable[..., Any]]:
    """Return the job, for its types, and its plain function."""
    found: Any = importlib.import_module(call.module)
    for part in call.function.split("."):
        found = getattr(found, part)
    if isinstance(found, Job):
        return found, vars(found.function)["__wrapped__"]
    return Job(function=found, name=call.job), found


def _in_context(call: Call, function: Callable[..., Any], ctx: ChildContext, arguments: dict[str, Any]) -> Any:
    enter(call.headers)
    return function(ctx, **arguments)


def _end_with_parent() -> None:
    """Have the kernel end this process when its standard input closes; what a job reads there is nothing."""
    lifeline = os.dup(0)
    with open(os.devnull) as nothing:  # noqa: PTH123 - a descriptor is wanted
        os.dup2(nothing.fileno(), 0)
    with contextlib.suppress(OSError):
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def main() -> None:
    """Run as a process of a worker: `descriptor of the socket`, `level of the log`."""
    _end_with_parent()
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        child = Child(channel)
        root = logging.getLogger()
        root.setLevel(int(sys.argv[2]))
        root.handlers[:] = [ToParent(child.tell)]
        child.serve()
