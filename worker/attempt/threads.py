"""Threads that run plain functions, so that these do not block the event loop."""

from __future__ import annotations

import ctypes
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from worker.errors import JobInterrupted


class ThreadCall:
    """A call of a plain function in a thread.

    Args:
        function: takes no arguments.
        pool: the pool that runs it.

    Attributes:
        future: the outcome of the call.
    """

    def __init__(self, function: Callable[[], Any], pool: ThreadPool) -> None:
        self.future: Future[Any] = Future()
        self._function = function
        self._pool = pool
        self._lock = threading.Lock()
        self._thread: int | None = None  # id of the thread that runs it
        self._interrupted = False
        self._over = False

    def run(self) -> None:
        """Run the function in the current thread. Raises nothing."""
        if not self.future.set_running_or_notify_cancel():
            return
        outcome: tuple[Any, BaseException | None] | None = None
        is_withdrawn = False
        # `JobInterrupted` is raised once, wherever the thread is: in the function, or in the lines of this loop.
        while True:
            try:
                if outcome is None:
                    self._thread = threading.get_ident()
                    outcome = self._call()
                with self._lock:
                    self._over = True
                if self._interrupted and not is_withdrawn:
                    is_withdrawn = True
                    _receive_pending()
                break
            except JobInterrupted as error:
                outcome = outcome or (None, error)
        assert outcome is not None  # noqa: S101
        result, failed = outcome
        if failed is None:
            self.future.set_result(result)
        else:
            self.future.set_exception(failed)

    def _call(self) -> tuple[Any, BaseException | None]:
        try:
            return self._function(), None
        except StopIteration as error:  # a future rejects StopIteration: the job would never end
            failed = RuntimeError("the job raised StopIteration")
            failed.__cause__ = error
            return None, failed
        except BaseException as error:  # noqa: BLE001 - the job's own error, raised where the future is awaited
            return None, error

    def interrupt(self) -> None:
        """Raise `JobInterrupted` in the function, once, at its next bytecode; a call that waits does not begin."""
        if self.future.cancel():
            return
        with self._lock:
            if self._thread is not None and not self._over and not self._interrupted:
                self._interrupted = True
                _raise_in(self._thread, JobInterrupted)

    async def abandon(self) -> str:
        """Replace this thread, which cannot be ended, by another one. Return its stack, for the log."""
        self._pool.replace(self)
        frame = sys._current_frames().get(self._thread or 0)
        stack = "" if frame is None else "".join(traceback.format_stack(frame)).rstrip()
        return f"Its thread cannot be ended and keeps running, beyond worker.max_threads. Stack:\n{stack}\n"


class ThreadPool:
    """Threads that run plain functions.

    Unlike those of `concurrent.futures`, they do not delay the end of the process, and a thread that does not return
    can be abandoned: another thread replaces it.

    Args:
        max_threads: functions that run at once; further ones wait.
    """

    def __init__(self, max_threads: int) -> None:
        self._max_threads = max_threads
        self._alive = self._idle = 0
        self._waiting: deque[ThreadCall] = deque()
        self._running: set[ThreadCall] = set()
        self._abandoned: set[ThreadCall] = set()
        self._closed = False
        self._wake = threading.Condition()

    def start(self, function: Callable[[], Any]) -> ThreadCall:
        """Call a function in a thread as soon as one is free."""
        call = ThreadCall(function, self)
        with self._wake:
            self._waiting.append(call)
            self._add_or_wake_thread()
        return call

    def replace(self, call: ThreadCall) -> None:
        """Replace the thread that runs an abandoned call by another one."""
        with self._wake:
            if call in self._running:
                self._abandoned.add(call)
                self._add_or_wake_thread()

    def close(self) -> None:
        """End the idle threads now, and the others when their calls have ended."""
        with self._wake:
            self._closed = True
            self._wake.notify_all()

    def _add_or_wake_thread(self) -> None:
        if len(self._waiting) > self._idle and self._alive - len(self._abandoned) < self._max_threads:
            self._alive += 1
            threading.Thread(target=self._work, name="job", daemon=True).start()
        else:
            self._wake.notify()

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._waiting:
                    if self._closed:
                        self._alive -= 1
                        return
                    self._idle += 1
                    self._wake.wait()
                    self._idle -= 1
                call = self._waiting.popleft()
                self._running.add(call)
            call.run()
            with self._wake:
                self._running.discard(call)
                if call in self._abandoned:
                    self._abandoned.discard(call)
                    self._alive -= 1
                    return
            del call


def _raise_in(thread: int, error: type[BaseException]) -> None:
    """Raise an exception in a thread at its next bytecode."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(error))


def _receive_pending() -> None:
    """Raise `JobInterrupted` here, in place of one that may be pending, so that it does not hit the next call.

    The API withdraws a pending exception by NULL. Python 3.11 and 3.12 then check for an exception at each bytecode for
    the rest of the process: all code is slower, and a trace function, as of a debugger, makes Python 3.11 hang.
    """
    _raise_in(threading.get_ident(), JobInterrupted)
    while True:
        pass
