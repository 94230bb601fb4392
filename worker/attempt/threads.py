"""Plain functions as jobs: in threads, so that they do not hold the event loop."""

from __future__ import annotations

import contextvars
import ctypes
import functools
import sys
import threading
import traceback
from collections import deque
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from worker.attempt.offload import await_offloaded
from worker.errors import JobInterrupted

if TYPE_CHECKING:
    from worker.attempt.context import JobContext


class ThreadCall:
    """A call of a plain function in a thread.

    Args:
        function: without arguments.

    Attributes:
        future: its outcome.
    """

    def __init__(self, function: Callable[[], Any], pool: Threads) -> None:
        self.future: Future[Any] = Future()
        self._function = function
        self._pool = pool
        self._lock = threading.Lock()
        self._thread: int | None = None  # that it runs in, as long as it does
        self._interrupted = False
        self._over = False

    def run(self) -> None:
        """Run it, in the thread that it is given; raises nothing."""
        if not self.future.set_running_or_notify_cancel():
            return
        outcome: tuple[Any, BaseException | None] | None = None
        # `JobInterrupted` is raised wherever the thread is, once: in the function, or in these lines.
        while not self._over:
            try:
                if outcome is None:
                    self._thread = threading.get_ident()
                    outcome = self._called()
                with self._lock:
                    self._over = True
                    _raise_in(threading.get_ident(), None)  # one that is on its way is not for the next call
            except JobInterrupted as error:
                outcome = outcome or (None, error)
        assert outcome is not None  # noqa: S101
        result, failed = outcome
        if failed is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(failed)

    def _called(self) -> tuple[Any, BaseException | None]:
        try:
            return self._function(), None
        except BaseException as error:  # noqa: BLE001 - it is the job's, and told where that is waited for
            return None, error

    def interrupt(self) -> None:
        """Raise `JobInterrupted` in it, once, at its next step in Python; one that has not begun does not begin."""
        if self.future.cancel():
            return
        with self._lock:
            if self._thread is not None and not self._over and not self._interrupted:
                self._interrupted = True
                _raise_in(self._thread, JobInterrupted)

    async def give_up(self) -> str:
        """Leave the thread to itself, and let another one take its place. Returns where it stands."""
        self._pool.replace(self)
        frame = sys._current_frames().get(self._thread or 0)
        where = "" if frame is None else "".join(traceback.format_stack(frame)).rstrip()
        return f"A thread cannot be killed: it goes on, beside worker.max_threads. Its thread stands at\n{where}\n"


class Threads:
    """Threads that run plain functions, so many at a time.

    Unlike those of `concurrent.futures`, they do not hold the end of the process, and one that does not come back can
    be given up: another one takes its place.

    Args:
        most: how many at a time; what comes beyond waits.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._alive = self._idle = 0
        self._waiting: deque[ThreadCall] = deque()
        self._running: set[ThreadCall] = set()
        self._given_up: set[ThreadCall] = set()
        self._wake = threading.Condition()

    def start(self, function: Callable[[], Any]) -> ThreadCall:
        """Call a function in a thread as soon as one is free."""
        call = ThreadCall(function, self)
        with self._wake:
            self._waiting.append(call)
            self._staff()
        return call

    def replace(self, call: ThreadCall) -> None:
        """Let another thread take the place of one that does not come back."""
        with self._wake:
            if call in self._running:
                self._given_up.add(call)
                self._staff()

    def _staff(self) -> None:
        """See to it that a thread comes for what waits."""
        if len(self._waiting) > self._idle and self._alive - len(self._given_up) < self._most:
            self._alive += 1
            threading.Thread(target=self._work, name="job", daemon=True).start()
        else:
            self._wake.notify()

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._waiting:
                    self._idle += 1
                    self._wake.wait()
                    self._idle -= 1
                call = self._waiting.popleft()
                self._running.add(call)
            call.run()
            with self._wake:
                self._running.discard(call)
                if call in self._given_up:
                    self._given_up.discard(call)
                    self._alive -= 1
                    return
            del call


@functools.cache
def _pool(most: int) -> Threads:
    return Threads(most)


def in_thread(function: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Return an async function that runs a plain one in a thread, `worker.max_threads` at a time.

    A cancellation, also that of a timeout, is passed on: `JobInterrupted` is raised in the function, at its next step
    in Python, and its end is waited for. The function gets the job's context for what it says (`ctx.run_id`,
    `ctx.settings`): scopes and loops are for the event loop.
    """

    @functools.wraps(function)
    async def wrapper(ctx: JobContext, *args: Any, **kwargs: Any) -> Any:
        call = functools.partial(contextvars.copy_context().run, function, ctx, *args, **kwargs)
        return await await_offloaded(_pool(ctx.settings.worker.max_threads).start(call), ctx)

    return wrapper


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    """Raise an exception in a thread, at its next step in Python; None takes back one that it has not come to."""
    raised = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), raised)
