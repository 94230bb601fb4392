"""The values of one frame, which the tables show."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from worker.queue.dead_letters import DeadLetter


@dataclass(frozen=True)
class QueueLine:
    """A queue.

    Attributes:
        name: Key of the queue.
        waiting: Jobs that are due and not claimed.
        deferred: Jobs that are due later.
        running: Jobs that workers run.
        oldest_seconds: Time since the first job became due; None if no job is due.
        paused: Whether it is paused.
    """

    name: str
    waiting: int
    deferred: int
    running: int
    oldest_seconds: float | None
    paused: bool


@dataclass(frozen=True)
class JobLine:
    """A job. Its rates are None before the second look.

    Attributes:
        name: Name of the job.
        running: Running runs among those whose mirrors were read.
        done_rate: Runs per second that succeeded.
        failed_rate: Runs per second that failed permanently.
        done: All runs that have succeeded.
        failed: All runs that have failed permanently.
        cancelled: All runs that were cancelled.
        paused: Whether it is paused.
    """

    name: str
    running: int
    done_rate: float | None
    failed_rate: float | None
    done: int
    failed: int
    cancelled: int
    paused: bool


@dataclass(frozen=True)
class RunLine:
    """A run that is running, is paused, or waits for another attempt.

    Attributes:
        id: Id of the run.
        job: Name of the job; empty before the mirror was read.
        worker: The worker that runs it; empty if no worker runs it.
        queue: Its queue.
        seconds: Time since this attempt began.
        attempt: Number of the attempt.
        takeovers: Number of takeovers by other workers.
        rows: Processed rows; None for a job without rows.
        rate: Rows per second.
        percent: Progress of this step.
        is_estimate: Whether `percent` is a rough estimate.
        left_seconds: Remaining time of this step.
        state: The state in one word.
        reason: The reason of the state.
    """

    id: str
    job: str
    worker: str
    queue: str
    seconds: float | None
    attempt: int | None
    takeovers: int
    rows: int | None
    rate: float | None
    percent: float | None
    left_seconds: float | None
    state: str
    reason: str
    is_estimate: bool = False


@dataclass(frozen=True)
class WorkerLine:
    """A worker, from its own entry.

    Attributes:
        name: Name of the worker.
        host: Host of the worker.
        pid: Process id of the worker.
        queue: The queue of its settings.
        state: running, draining, or lost (silent for longer than a lease).
        used: Slots with a job.
        slots: All slots.
        seen_seconds: Time since it last reported.
        up_seconds: Time since it started.
        done: Jobs that the worker has ended.
    """

    name: str
    host: str
    pid: int
    queue: str
    state: str
    used: int
    slots: int
    seen_seconds: float
    up_seconds: float
    done: int


@dataclass(frozen=True)
class Hold:
    """A cause that holds runs back.

    Attributes:
        kind: A pause, a pace, a limit or a rate.
        on: A run, job or queue, `*` for all, or the job and value of a limit.
        detail: Description in a few words.
        waiting: Runs that wait for it; None if they are not counted.
        seconds: The longest wait among them.
    """

    kind: Literal["pause", "pace", "limit", "rate"]
    on: str
    detail: str
    waiting: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Frame:
    """One look.

    Attributes:
        at: Time of Redis.
        server: Name, version and memory of the server.
        url: Its URL, without the password.
        queues: The queues of the settings and of all workers.
        jobs: The jobs that have an ended, running or waiting run.
        runs: The runs: running ones first, the longest first.
        running: Number of running runs, shown or not.
        workers: The workers by name.
        workers_known: Number of workers, shown or not.
        failures: The newest dead letters.
        failed: Number of dead letters, shown or not.
        holds: The causes that hold runs back.
        done_rate: Runs per second that succeeded, over the last seconds; None before the second look.
        failed_rate: Runs per second that failed permanently.
        history: Runs that ended per second, at each of the last looks.
        commands: Redis commands of this look.
        trips: Round trips of this look.
    """

    at: datetime
    server: str
    url: str
    queues: list[QueueLine] = field(default_factory=list)
    jobs: list[JobLine] = field(default_factory=list)
    runs: list[RunLine] = field(default_factory=list)
    running: int = 0
    workers: list[WorkerLine] = field(default_factory=list)
    workers_known: int = 0
    failures: list[DeadLetter] = field(default_factory=list)
    failed: int = 0
    holds: list[Hold] = field(default_factory=list)
    done_rate: float | None = None
    failed_rate: float | None = None
    history: tuple[float, ...] = ()
    commands: int = 0
    trips: int = 0
