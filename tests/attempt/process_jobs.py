"""Jobs that run in processes, in a separate module that a process can import."""

from __future__ import annotations

import ctypes
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker import JobInterrupted, NonRetryableError, Retry, job, propagate, traceparent, tracestate

if TYPE_CHECKING:  # each process imports this module: it loads a second of packages less without SQLAlchemy
    from worker import JobContext

tenant = propagate(ContextVar("tenant-of-tests", default=""))


@dataclass
class Order:
    """A value that survives JSON unchanged."""

    price: Decimal
    lead: timedelta


class Declined(NonRetryableError):
    """An error of the job with a custom constructor."""

    def __init__(self, reason: str, *, code: int) -> None:
        super().__init__(f"{reason} ({code})")
        self.code = code


class Odd(ValueError):
    """An error that cannot be created again from its message."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = [object(), what]

    def __str__(self) -> str:
        return f"odd {self.what[1]}"


@job(run_in="process")
def double(ctx: JobContext, order: Order, factor: Decimal = Decimal(2)) -> Order:
    """Return the arguments, for a round trip of their types."""
    assert isinstance(order, Order)
    return Order(order.price * factor, order.lead)


@job(run_in="process", name="tell-context", timeout=60)
def tell(ctx: JobContext) -> dict[str, Any]:
    """Return the values of the context."""
    logging.getLogger("my.log").warning("in process %d", os.getpid())
    return {
        "pid": os.getpid(),
        "run": ctx.run_id,
        "job": ctx.job,
        "attempt": ctx.attempt,
        "at": ctx.enqueued_at.timestamp(),
        "tries": ctx.settings.worker.max_attempts,
        "stdin": sys.stdin.read(),
    }


@job(run_in="process")
def report(ctx: JobContext, file: str) -> int:
    """Report progress, and wait for a signal."""
    ctx.progress(3, 4)
    while not Path(file).exists():
        time.sleep(0.01)
    return 4


def context() -> dict[str, str]:
    """Return the headers and context variables of the run."""
    return {"tenant": tenant.get(), "traceparent": traceparent.get(), "tracestate": tracestate.get()}


@job(run_in="process")
def context_in_process(ctx: JobContext) -> dict[str, str]:
    """Return the headers and context variables in a process."""
    found = context() | {"mark": ctx.headers.get("mark", "")}
    tenant.set("left behind")
    return found


@job(run_in="process")
def wants_session(ctx: JobContext) -> None:
    """Use an attribute that the context does not have."""
    ctx.transaction()


@job(run_in="process", max_attempts=2, backoff=0, do_not_retry=[Odd])
def fail(ctx: JobContext, how: str) -> None:
    """Raise."""
    if how == "declined":
        raise Declined("no", code=7)
    if how == "odd":
        raise Odd("thing")
    if how == "retry" and ctx.attempt == 1:
        raise Retry(after=0.01)
    if how == "exit":
        sys.exit(3)
    if how == "value":
        raise ValueError("in there")


@job(run_in="process", max_attempts=1)
def die(ctx: JobContext, how: str) -> None:
    """End the process."""
    if how == "segfault":
        ctypes.string_at(0)
    elif how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(3)


@job(run_in="process", timeout=0.3, max_attempts=1)
def spin(ctx: JobContext, file: str, answer: bool = False) -> str:
    """Compute until it is interrupted, and clean up for longer than the clock's tick."""
    Path(file).write_text("begun")
    try:
        while True:
            pass
    except JobInterrupted:
        time.sleep(0.3)
        Path(file).write_text("cleaned up")
        if answer:
            return "a part"
        raise


@job(run_in="process")
def sleep(ctx: JobContext, file: str) -> None:
    """Wait in the kernel."""
    Path(file).write_text(str(os.getpid()))
    time.sleep(60)


@job(run_in="process", max_attempts=1)
def hold_the_lock(ctx: JobContext, file: str) -> None:
    """Hold the interpreter's lock, as a regular expression does, for longer than any wait."""
    Path(file).write_text(str(os.getpid()))
    re.match(r"(a+)+$", "a" * 60 + "b")


@job(run_in="process", max_attempts=1)
def deaf(ctx: JobContext) -> None:
    """Swallow the interruption."""
    while True:
        with suppress(JobInterrupted):
            time.sleep(60)


@job(run_in="process", max_attempts=1)
def answer(ctx: JobContext, number: int) -> int:
    """Return the argument."""
    return number


@job(run_in="process", max_attempts=1)
def fork_and_return(ctx: JobContext, file: str) -> str:
    """Return in the process and in a fork of it; the fork answers only when the process has."""
    pid = os.fork()
    if pid == 0:
        while not Path(file).exists():
            time.sleep(0.01)
        return "fork"
    return str(pid)


@job(run_in="process", max_attempts=1)
def forge(ctx: JobContext, line: str) -> int:
    """Write a line of its own to the socket of the worker."""
    for number in range(3, 64):
        with suppress(OSError), socket.socket(fileno=os.dup(number)) as found:
            found.sendall(line.encode() + b"\n")
    return 1


@job(run_in="process", max_attempts=1)
def fork_and_die(ctx: JobContext, file: str) -> None:
    """Leave a fork behind that holds the socket open and ignores SIGIO."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGIO, signal.SIG_IGN)
        time.sleep(60)
        os._exit(0)
    Path(file).write_text(str(pid))
    os.kill(os.getpid(), signal.SIGKILL)


@job(run_in="process", max_attempts=1)
def start_and_wait(ctx: JobContext, file: str) -> None:
    """Start another program, and compute for long."""
    child = subprocess.Popen(["sleep", "300"])
    Path(file).write_text(f"{os.getpid()} {child.pid}")
    hold_the_lock.function(ctx, str(Path(file).with_suffix(".lock")))


@job(run_in="process", max_attempts=1)
def exhausted(ctx: JobContext) -> str:
    """Raise StopIteration."""
    return next(iter(()))


@job(run_in="process", max_attempts=1)
def not_text(ctx: JobContext) -> str:
    """Return a value that does not match the annotation."""
    return 5  # type: ignore[return-value]
