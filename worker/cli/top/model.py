"""The data of one refresh of the page, before it is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from worker.queue.dead_letters import DeadLetter


@dataclass(frozen=True)
class QueueLine:
    """A queue.

    Attributes:
        name: The key of the queue.
        waiting: The number of jobs that are due and not running.
        deferred: The number of jobs that are due later.
        running: The number of running jobs.
        oldest_seconds: How long the first job has been due; None if none is due, or the time is unknown.
        paused: Whether the queue is paused.
    """

    name: str
    waiting: int
    deferred: int
    running: int
    oldest_seconds: float | None
    paused: bool


@dataclass(frozen=True)
class JobLine:
    """A job, with its rates of ended runs; a rate is None before the second refresh.

    Attributes:
        name: The name of the job.
        running: The number of running runs whose mirrors were read.
        done_rate: Succeeded runs per second.
        failed_rate: Dead runs per second.
        done: The number of all succeeded runs.
        failed: The number of all dead runs.
        cancelled: The number of all cancelled runs.
        paused: Whether the job is paused.
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
    """A run that is running, paused, or waits for its next attempt.

    Attributes:
        id: The id of the run.
        job: The name of the job; empty before the mirror was read.
        worker: The worker that runs it; empty if none does.
        queue: The name of the queue.
        seconds: Seconds since this attempt started.
        attempt: The number of the attempt.
        takeovers: How often another worker took the run over.
        rows: Rows done; None for a job without rows.
        rate: Rows per second.
        percent: Percent of the current step.
        left_seconds: Remaining seconds of the current step.
        state: The state, one word.
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


@dataclass(frozen=True)
class WorkerLine:
    """A worker, by its own entry in the mirror.

    Attributes:
        name: The name of the worker.
        host: The host that it runs on.
        pid: The id of its process.
        queue: The queue of its settings.
        state: running, draining, or lost, if it was not seen for the time of a lease.
        used: The number of slots with a job.
        slots: The number of all slots.
        seen_seconds: Seconds since its last update.
        up_seconds: Seconds since its start.
        done: The number of jobs that it ended.
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
    """A reason that holds runs back.

    Attributes:
        kind: A pause, a pace, a limit or a rate.
        on: A run, job or queue, `*` for all, or job and value of a limit.
        detail: The details, in a few words.
        waiting: The number of runs that wait for it; None if it is not counted.
        seconds: The longest wait of these runs, in seconds.
    """

    kind: Literal["pause", "pace", "limit", "rate"]
    on: str
    detail: str
    waiting: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Frame:
    """The data of one refresh.

    Attributes:
        at: The time of Redis.
        server: Name, version and memory of the server.
        url: The URL of the server, without its password.
        queues: The queues of the settings and of all workers.
        jobs: The jobs with an ended or running run.
        runs: The runs, running ones first, the longest first.
        working: The number of running runs, shown or not.
        workers: The workers, by name.
        workers_known: The number of workers, shown or not.
        failures: The newest dead letters.
        failed: The number of dead letters, shown or not.
        holds: The reasons that hold runs back.
        done_rate: Succeeded runs per second, over the last seconds; None before the second refresh.
        failed_rate: Dead runs per second, likewise.
        history: Ended runs per second at each of the last refreshes.
        commands: The number of commands of this refresh.
        trips: The number of round trips of this refresh.
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
