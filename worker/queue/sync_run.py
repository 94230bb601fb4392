"""Handles of runs and groups for callers without an event loop."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar

from worker.queue.blocking import run_without_loop
from worker.queue.group import Group, GroupProgress
from worker.queue.run import ENDED, ProgressReport, Run, Status, make_report

R = TypeVar("R")

_FIRST_POLL_SECONDS = 0.005
_POLL_SECONDS = 0.1
#: Time after which a caller that waits for a result checks again whether it can still come.
_SURE_SECONDS = 5.0
_MIRROR_SECONDS = 1.5


class SyncRun(Generic[R]):
    """An enqueued run: the methods of `Run`, blocking. Safe to use from several threads.

    Attributes:
        id: id of the run, and of arq's job.
        is_new: False if this is an existing run: the id is in the queue, its result is still known, or the job is
            unique and a run with these arguments exists.
        replaced: True if it replaced a waiting run with the same id.
        next_runs: the runs that follow it, in order; none if it is not new.
    """

    def __init__(self, run: Run[R]) -> None:
        self._run = run
        self.id = run.id
        self.is_new = run.is_new
        self.replaced = run.replaced
        self.next_runs: tuple[SyncRun[Any], ...] = tuple(map(SyncRun, run.next_runs))

    def __repr__(self) -> str:
        return f"<SyncRun {self.id}>"

    def result(self, timeout: float | None = None) -> R:
        """Wait until the run has ended, and return the job's result in the type that its function declares.

        Redis is asked every tenth of a second.

        Args:
            timeout: seconds to wait; None to wait without a limit.

        Raises:
            JobFailed: the job ended with an error.
            JobCancelled: an operator cancelled the run.
            ResultTooLarge: the job succeeded, but its result was not stored.
            InvalidPayload: the result was not written by Longhaul.
            TimeoutError: the run has not ended within the timeout. It continues.
            ServerUnavailable: Redis does not answer.
        """
        began = time.monotonic()
        checked_at, pause = -_SURE_SECONDS, _FIRST_POLL_SECONDS
        while True:
            raw = run_without_loop(self._run.read_end())
            if raw is not None:
                return self._run.decode_end(raw)
            passed = time.monotonic() - began
            if timeout is not None and passed >= timeout:
                raise TimeoutError(f"run {self.id} has not ended within {timeout:g} s; it continues")
            if passed - checked_at >= _SURE_SECONDS:
                run_without_loop(self._run.check_result_kept())
                checked_at = passed
            time.sleep(pause if timeout is None else min(pause, timeout - passed))
            pause = min(_POLL_SECONDS, 1.5 * pause)

    def status(self) -> Status:
        """Return the state of the run; `unknown` if Redis does not have the run."""
        return run_without_loop(self._run.status())

    def progress(self, every: float = 0.5) -> Iterator[ProgressReport]:
        """Yield reports until the run has ended: `for report in run.progress()`.

        Args:
            every: seconds between two reports; the worker writes twice a second.
        """
        while True:
            state, fields = run_without_loop(self._run.look())
            if state in ENDED:
                ends_at = time.monotonic() + _MIRROR_SECONDS
                # The last update of the mirror follows the result within a second, if there is a mirror.
                while fields and fields.get("state") != state and time.monotonic() < ends_at:
                    time.sleep(_POLL_SECONDS)
                    fields = run_without_loop(self._run.look())[1]
                yield make_report(state, fields)
                return
            yield make_report(state, fields)
            if state == "unknown":
                run_without_loop(self._run.check_result_kept())
            time.sleep(every)

    def cancel(self) -> bool:
        """Cancel the run: at its next batch boundary, or before it begins. Does not wait for the end.

        Returns:
            False if the run neither waits nor runs.
        """
        return run_without_loop(self._run.cancel())


class SyncGroup(Generic[R]):
    """An enqueued group: the methods of `Group`, blocking.

    Attributes:
        id: id of the group.
        runs: its members, in order.
        callback: run of the callback; None without one.
    """

    def __init__(self, group: Group[R]) -> None:
        self._group = group
        self.id = group.id
        self.runs: Sequence[SyncRun[Any]] = [SyncRun(run) for run in group.runs]
        self.callback: SyncRun[R] | None = None if group.callback is None else SyncRun(group.callback)

    def progress(self) -> GroupProgress:
        """Return the progress of the group.

        Raises:
            InvalidArguments: the group does not exist, or ended more than 30 days ago.
            ServerUnavailable: Redis does not answer.
        """
        return run_without_loop(self._group.progress())
