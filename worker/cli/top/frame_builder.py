"""Builds a frame from the replies of Redis: one function for each kind of line."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from worker.cli.top.model import Hold, JobLine, QueueLine, RunLine, WorkerLine
from worker.cli.top.run_state import Commands, build_run_line
from worker.queue import keys
from worker.queue.decoding import read_time

Mirror = dict[str, str]
Counts = Mapping[tuple[str, str], int]

#: Seconds over which a rate is averaged.
WINDOW_SECONDS = 10.0
_HISTORY = 60


class Rates:
    """Runs per second, from the mirror's counters by job and state, which only grow."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, Counts]] = deque()
        self._history: deque[float] = deque(maxlen=_HISTORY)

    def add(self, at: float, counts: Counts) -> None:
        """Record the counters at a moment (seconds, by the server's clock)."""
        if self._looks:
            earlier, before = self._looks[-1]
            if at <= earlier or any(counts.get(name, 0) < number for name, number in before.items()):
                self._looks.clear()  # another server, or the server has lost its data: start over
            else:
                grown = sum(counts.values()) - sum(before.values())
                self._history.append(grown / (at - earlier))
        self._looks.append((at, counts))
        while len(self._looks) > 2 and self._looks[1][0] <= at - WINDOW_SECONDS:
            self._looks.popleft()

    def rate(self, state: str, job: str | None = None) -> float | None:
        """Return the runs per second that reached a state, of one job or of all; None before the second look."""
        if len(self._looks) < 2:
            return None
        (earlier, before), (now, after) = self._looks[0], self._looks[-1]
        names = [name for name in after if name[1] == state and job in (None, name[0])]
        return sum(after[name] - before.get(name, 0) for name in names) / (now - earlier)

    @property
    def history(self) -> tuple[float, ...]:
        """Runs that ended per second, in any state, at each of the last looks."""
        return tuple(self._history)


@dataclass
class Look:
    """The replies of one look, decoded.

    Attributes:
        replies: The replies by the name of their command.
        now: Time of the server, in seconds.
        moment: The same time as a datetime.
        workers: The workers by name, from their own entries.
        owners: The worker of each running run.
        counts: Runs that ended, by job and state.
        commands: Operator commands in force.
        queues: Names of the queues.
        jobs: Names of the jobs.
        scopes: The limits whose holders and waiters were read.
        mirrors: The mirrors of runs, by id.
        fresh: Ids of the runs whose mirrors this look has read.
    """

    replies: dict[Any, Any]
    now: float
    moment: datetime
    workers: dict[str, dict[str, Any]]
    owners: dict[str, str]
    counts: dict[tuple[str, str], int]
    commands: Commands
    queues: list[str] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)
    scopes: list[str] = field(default_factory=list)
    mirrors: Mapping[str, Mirror] = field(default_factory=dict)
    fresh: Collection[str] = ()


def build_queue_lines(look: Look) -> list[QueueLine]:
    """Return a line for each queue."""
    running: dict[str, int] = {}
    for run_id, owner in look.owners.items():
        name = look.mirrors.get(run_id, {}).get("queue") or str(look.workers[owner].get("queue"))
        running[name] = running.get(name, 0) + 1
    return [_build_queue_line(look, name, running.get(name, 0)) for name in look.queues]


def _build_queue_line(look: Look, name: str, running: int) -> QueueLine:
    head = look.replies.get(("head", name))
    due = head[0][1] / 1000 if head else 0.0
    return QueueLine(
        name=name,
        waiting=look.replies.get(("waiting", name), 0),
        deferred=max(0, look.replies.get(("later", name), 0) - running),  # a running job is due when its lease ends
        running=running,
        oldest_seconds=look.now - due if 0 < due <= look.now else None,
        paused=not look.commands.paused.isdisjoint((name, keys.ALL)),
    )


def build_job_lines(look: Look, rates: Rates) -> list[JobLine]:
    """Return a line for each job."""
    running: dict[str, int] = {}
    for run_id in look.owners:
        if job := look.mirrors.get(run_id, {}).get("job"):
            running[job] = running.get(job, 0) + 1
    return [
        JobLine(
            name=name,
            running=running.get(name, 0),
            done_rate=rates.rate("succeeded", name),
            failed_rate=rates.rate("dead", name),
            done=look.counts.get((name, "succeeded"), 0),
            failed=look.counts.get((name, "dead"), 0),
            cancelled=look.counts.get((name, "cancelled"), 0),
            paused=not look.commands.paused.isdisjoint((name, keys.ALL)),
        )
        for name in look.jobs
    ]


def build_run_lines(look: Look) -> list[RunLine]:
    """Return a line for each run: running ones first, by decreasing time, then waiting ones."""
    lines = [
        build_run_line(
            run_id,
            look.mirrors.get(run_id, {}),
            look.commands,
            look.moment,
            worker=name,
            worker_state=look.workers.get(name, {}).get("state"),
        )
        for run_id, name in look.owners.items()
    ]
    lines.sort(key=lambda line: (-(line.seconds or 0.0), line.id))
    held = {
        run_id.decode(errors="replace"): scope
        for scope in look.scopes
        for run_id, _ in look.replies.get(("first", scope), ())
    }
    idle = [
        build_run_line(run_id, mirror, look.commands, look.moment, held_by=held.get(run_id))
        for run_id, mirror in look.mirrors.items()
        if run_id not in look.owners and run_id in look.fresh  # an old mirror may not show that the run has ended
    ]
    return lines + sorted(idle, key=lambda line: line.id)


def build_worker_lines(look: Look) -> list[WorkerLine]:
    """Return a line for each worker."""
    return [_build_worker_line(look, name, values) for name, values in look.workers.items()]


def _build_worker_line(look: Look, name: str, values: dict[str, Any]) -> WorkerLine:
    state = str(values.get("state", ""))
    return WorkerLine(
        name=name,
        host=str(values.get("host", "")),
        pid=_whole(values.get("pid")),
        queue=str(values.get("queue", "")),
        state="draining" if state == "running" and name in look.commands.drained else state,
        used=len(values.get("jobs", ())),
        slots=_whole(values.get("max_jobs")),
        seen_seconds=_seconds_since(values.get("seen_at"), look.moment),
        up_seconds=_seconds_since(values.get("started_at"), look.moment),
        done=_whole(values.get("done")),
    )


def build_holds(look: Look) -> list[Hold]:
    """Return the causes that hold runs back: operator commands first, then limits and rates with their waiters."""
    queues, jobs, commands = set(look.queues), set(look.jobs), look.commands
    holds = [
        Hold("pause", name, _describe_target(name, queues, jobs) + " paused by command")
        for name in sorted(commands.paused)
    ]
    holds += [
        Hold("pace", name, f"{raw} rows/s by command, {_describe_target(name, queues, jobs)}")
        for name, raw in sorted(decode_texts(look.replies["pace"][1]).items())
    ]
    for scope in look.scopes:
        waiting, first = look.replies["held", scope], look.replies["first", scope]
        if waiting:
            since = look.now - first[0][1] / 1000 if first else None
            holds.append(Hold("limit", scope, f"{look.replies['inside', scope]} running, the limit", waiting, since))
        if (seconds := seconds_until_start(look, scope)) > 1:
            holds.append(Hold("rate", scope, f"the next may begin in {seconds:.0f} s"))
    for kind, name, unit in (("limit", "limits", "at once"), ("rate", "rates", "a second")):
        for job, number in sorted(decode_texts(look.replies[name][1]).items()):
            holds.append(Hold("limit" if kind == "limit" else "rate", job, f"{number} {unit} by command"))
    return holds


def seconds_until_start(look: Look, scope: str) -> float:
    """Return the seconds until a rate admits the next run; 0 or less if it admits one now."""
    raw = look.replies["moment", scope]
    try:
        return 0.0 if raw is None else float(raw.split()[0]) / 1000 - look.now
    except (ValueError, IndexError):
        return 0.0


def decode_counts(raw: dict[bytes, bytes]) -> dict[tuple[str, str], int]:
    """Return the counters of `worker:jobs` by job and state. A field that is not a number is ignored."""
    counts = {}
    for name, number in decode_texts(raw).items():
        job, _, state = name.rpartition(":")
        if number.isascii() and number.isdigit() and len(number) < 20:
            counts[job, state] = int(number)
    return counts


def decode_names(raw: Iterable[bytes]) -> frozenset[str]:
    """Return the members of a set as text."""
    return frozenset(name.decode(errors="replace") for name in raw)


def decode_texts(raw: dict[bytes, bytes]) -> dict[str, str]:
    """Return the fields of a hash as text."""
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, value in raw.items()}


def _describe_target(name: str, queues: Collection[str], jobs: Collection[str]) -> str:
    if name == keys.ALL:
        return "everything"
    return "queue" if name in queues else "job" if name in jobs else "run"


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _seconds_since(text: object, now: datetime) -> float:
    moment = read_time(text)
    return 0.0 if moment is None else max(0.0, (now - moment).total_seconds())
