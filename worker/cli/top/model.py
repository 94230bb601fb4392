"""One look at everything: what the page shows, before it is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from worker.queue.dead_letters import DeadLetter


@dataclass(frozen=True)
class QueueLine:
    """A queue.

    Attributes:
        name: its key.
        waiting: jobs that are due, and that nobody has.
        deferred: jobs that are due later.
        running: jobs that workers have.
        oldest_seconds: how long the first one has been due; None where none is, or nobody said since when.
        paused: whether nothing is taken from it.
    """

    name: str
    waiting: int
    deferred: int
    running: int
    oldest_seconds: float | None
    paused: bool


@dataclass(frozen=True)
class JobLine:
    """A job, with the ends of its runs a second; None before there are two looks.

    Attributes:
        name: of the job.
        running: runs at work, of those whose mirrors were read.
        done_rate: runs that succeeded, a second.
        failed_rate: runs that failed for good, a second.
        done: runs that have succeeded, ever.
        failed: runs that have failed for good, ever.
        cancelled: runs that were cancelled, ever.
        paused: whether it does not start.
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
    """A run that works, is paused, or waits for another try.

    Attributes:
        id: of the run.
        job: its name; empty before its mirror was read.
        worker: who has it; empty for nobody.
        queue: its queue.
        seconds: since this try began.
        attempt: number of the try.
        takeovers: how often another worker went on with it.
        rows: rows done; None for a job without rows.
        rate: rows a second.
        percent: of this step.
        left_seconds: time left of this step.
        state: one word.
        reason: of the state.
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


@dataclass(frozen=True)
class WorkerLine:
    """A worker, as it describes itself.

    Attributes:
        name: of the worker.
        host: where it runs.
        pid: of its process.
        queue: that of its settings.
        state: running, draining, or lost: it has not been seen for a lease's life.
        used: slots with a job.
        slots: all of them.
        seen_seconds: since its last word.
        up_seconds: since it began.
        done: jobs that it has ended.
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
    """Something that holds runs back.

    Attributes:
        kind: an order to pause, a pace, a limit or a rate.
        on: run, job, queue, `*` for all, or job and value of a limit.
        detail: in a few words.
        waiting: runs that wait for it; None where nobody counts them.
        seconds: longest wait among them.
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
        at: time of Redis.
        server: name, version, and memory of the server.
        url: where it is, without a password.
        queues: those of the settings and of all workers.
        jobs: those of which a run has ended or works.
        runs: those at work first, the longest first.
        working: how many runs are at work, shown or not.
        workers: by name.
        workers_known: how many there are, shown or not.
        failures: the newest dead letters.
        failed: how many there are, shown or not.
        holds: what holds runs back.
        done_rate: runs that succeeded, a second, over the last seconds; None before there are two looks.
        failed_rate: as well, those that failed for good.
        history: ends a second at each of the last looks.
        commands: that this look took.
        trips: round trips that this look took.
    """

    at: datetime
    server: str
    url: str
    queues: list[QueueLine] = field(default_factory=list)
    jobs: list[JobLine] = field(default_factory=list)
    runs: list[RunLine] = field(default_factory=list)
    working: int = 0
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
