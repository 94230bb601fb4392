"""Reads a frame from Redis: one round trip, two if runs have started, and never the whole of a large key.

What may be large is read in part: the mirrors of so many runs (those on the screen each time, the others in turn), the
newest dead letters by their times (each letter once: it does not change), the first runs that are due, a few limits in
turn, one step of a SCAN. Hashes and sets are read with HSCAN and SSCAN, their first thousand or so.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from typing import Any

from redis.exceptions import RedisError, ResponseError

from worker.cli.top.model import Frame, Hold, JobLine, QueueLine, RunLine, WorkerLine
from worker.cli.top.rates import Rates
from worker.cli.top.run_state import ENDED, Orders, line_of
from worker.queue import keys
from worker.queue.client import Client
from worker.queue.dead_letters import DeadLetter
from worker.queue.overview import describe_workers
from worker.settings import Settings, mask_passwords

#: Mirrors of runs that a look reads.
MIRRORS = 200
#: Dead letters that are shown.
LETTERS = 100
_FIELDS = 1_000  # of a hash or set
_DUE = 25  # runs at the front of each queue
_SOON_MS = 2_000  # a paused run is due again within this time
_SCOPES = 10  # limits that are looked at in turn
_SCOPES_FIRST = 50
_SCAN = 200
_QUEUES = 50

MIRROR_FIELDS = (
    *("job", "state", "worker", "queue", "attempt", "takeovers", "started_at", "rows", "percent", "rate"),
    *("eta_seconds", "throttled", "throttled_since", "throttled_until", "stalled_since", "error"),
)

Mirror = dict[str, str]


class _Trip:
    """The commands of one round trip, each with a name for its answer."""

    def __init__(self, client: Client) -> None:
        self._pipeline = client.redis.pipeline(transaction=False)
        self._names: list[Any] = []

    def ask(self, name: Any) -> Any:
        """Return the pipeline, to add the one command of this name."""
        self._names.append(name)
        return self._pipeline

    def __len__(self) -> int:
        return len(self._names)

    async def answers(self) -> dict[Any, Any]:
        """Send the commands.

        Raises:
            RedisError: Redis does not answer, or refuses one other than INFO.
        """
        found = dict(zip(self._names, await self._pipeline.execute(raise_on_error=False), strict=True))
        for name, answer in found.items():
            if isinstance(answer, Exception) and not (name == "info" and isinstance(answer, ResponseError)):
                raise answer
        return found


class Reader:
    """Reads frames. It remembers unchanging data, and its position in data that is read in turn.

    Args:
        client: for Redis.
        settings: for queues and leases.
    """

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        self._rates = Rates()
        self._ahead_ms = 0.0  # of our clock, the server's
        self._server = ""
        self._queues = list(settings.worker.queues or [settings.worker.queue])
        self._mirrors: dict[str, Mirror] = {}
        self._read_at: dict[str, int] = {}  # number of the refresh that read a run's mirror
        self._working: frozenset[str] = frozenset()
        self._due: list[str] = []
        self._letters: dict[str, tuple[float, DeadLetter | None]] = {}
        self._jobs: list[str] = []
        self._scopes: dict[str, None] = {}  # limits that hold runs back
        self._turn = 0
        self._cursor = 0
        self._looks = 0

    async def read(self, shown: Iterable[str] = ()) -> Frame:
        """Return the current frame.

        Args:
            shown: ids of the runs on the screen, whose mirrors are read each time.

        Raises:
            RedisError: Redis does not answer.
        """
        self._looks += 1
        first = _Trip(self._client)
        self._ask_for_all(first)
        mirrors = self._in_turn(shown)
        self._ask_for_mirrors(first, mirrors)
        scopes = self._scopes_in_turn()
        _ask_for_scopes(first, scopes)
        try:
            got = await first.answers()
        except (RedisError, OSError):
            self._server = ""  # it may be another server when it is back
            raise
        seconds, micros = got["time"]
        now = seconds + micros / 1e6
        self._ahead_ms = (now - time.time()) * 1000
        self._take_server(got["info"], got["memory"])
        moment = datetime.fromtimestamp(now, UTC)
        workers = describe_workers(got["workers"][1], self._settings.worker.lease_seconds, moment)
        owners = {
            run_id: name for name, worker in workers.items() if worker["state"] != "lost" for run_id in worker["jobs"]
        }
        counts = _counts(got["jobs"][1])
        self._rates.add(now, counts)
        self._take_mirrors(got, mirrors)
        second = _Trip(self._client)
        new = [run_id for run_id in owners if run_id not in self._mirrors]
        new += [run_id for run_id in self._mirrors if run_id not in owners and not self._is_fresh(run_id)]
        del new[max(0, MIRRORS - len(mirrors)) :]
        self._working = frozenset(owners)
        self._due = self._due_now(got, owners)
        if self._looks == 1:
            new += self._due
        self._ask_for_mirrors(second, new)
        letters = {run_id.decode(errors="replace"): at for run_id, at in got["dead at"]}
        unread = [run_id for run_id, at in letters.items() if self._letters.get(run_id, (None,))[0] != at]
        if unread:
            second.ask("letters").hmget(keys.DEAD, unread)
        self._jobs = self._known_jobs(counts)
        if self._looks == 1:
            scopes = self._jobs[:_SCOPES_FIRST]
            _ask_for_scopes(second, scopes)
        trips = 1
        if len(second):
            trips = 2
            more = await second.answers()
            self._take_mirrors(more, new)
            for run_id, raw in zip(unread, more.get("letters", ()), strict=True):
                self._letters[run_id] = (letters[run_id], None if raw is None else DeadLetter.read(run_id, raw))
            got |= more
            self._jobs = self._known_jobs(counts)
        self._letters = {run_id: self._letters[run_id] for run_id in letters}
        self._forget(owners)
        self._queues = self._queues_of(workers)
        orders = Orders(
            paused=_names(got["paused"][1]), cancelled=_names(got["cancelled"][1]), drained=_names(got["drain"][1])
        )
        held = {
            run_id.decode(errors="replace"): scope for scope in scopes for run_id, _ in got.get(("first", scope), ())
        }
        runs = self._runs(owners, workers, orders, held, moment)
        return Frame(
            at=moment,
            server=self._server,
            url=mask_passwords(self._settings.redis.url),
            queues=[self._queue(name, got, owners, workers, orders, now) for name in self._queues],
            jobs=self._job_lines(counts, owners, orders),
            runs=runs,
            working=len(owners),
            workers=[_worker(name, one, orders, moment) for name, one in workers.items()],
            workers_known=got["workers known"],
            failures=[letter for _, letter in self._letters.values() if letter is not None],
            failed=got["dead"],
            holds=self._holds(got, scopes, orders, now),
            done_rate=self._rates.of("succeeded"),
            failed_rate=self._rates.of("dead"),
            history=self._rates.history,
            commands=len(first) + len(second),
            trips=trips,
        )

    # --- commands

    def _ask_for_all(self, trip: _Trip) -> None:
        now_ms = time.time() * 1000 + self._ahead_ms
        trip.ask("time").time()
        trip.ask("info").info("server" if not self._server else "clients")
        trip.ask("memory").info("memory")
        trip.ask("workers known").hlen(keys.WORKERS)
        trip.ask("workers").hscan(keys.WORKERS, 0, count=_FIELDS)
        trip.ask("jobs").hscan(keys.JOBS, 0, count=_FIELDS)
        trip.ask("paused").sscan(keys.PAUSED, 0, count=_FIELDS)
        trip.ask("cancelled").sscan(keys.CANCELLED, 0, count=_FIELDS)
        trip.ask("drain").sscan(keys.DRAINED, 0, count=_FIELDS)
        trip.ask("pace").hscan(keys.PACE, 0, count=_FIELDS)
        trip.ask("limits").hscan(keys.LIMITS, 0, count=_FIELDS)
        trip.ask("rates").hscan(keys.RATES, 0, count=_FIELDS)
        trip.ask("dead").hlen(keys.DEAD)
        trip.ask("dead at").zrange(keys.DEAD_AT, 0, LETTERS - 1, desc=True, withscores=True)
        trip.ask("scan").scan(self._cursor, match=keys.HELD + "*", count=_SCAN)
        for queue in self._queues:
            trip.ask(("waiting", queue)).zcount(queue, "-inf", now_ms)
            trip.ask(("later", queue)).zcount(queue, f"({now_ms}", "+inf")
            trip.ask(("head", queue)).zrange(queue, 0, 0, withscores=True)
            trip.ask(("due", queue)).zrangebyscore(queue, "-inf", now_ms + _SOON_MS, start=0, num=_DUE)

    def _ask_for_mirrors(self, trip: _Trip, run_ids: Iterable[str]) -> None:
        for run_id in run_ids:
            trip.ask(("mirror", run_id)).hmget(keys.RUN + run_id, MIRROR_FIELDS)

    def _in_turn(self, shown: Iterable[str]) -> list[str]:
        """Return the runs whose mirrors are read now: those on screen, due ones, and the longest unread."""
        known = self._working | self._mirrors.keys()
        asked = dict.fromkeys(run_id for run_id in shown if run_id in known)
        asked |= dict.fromkeys(self._due)
        for run_id in sorted(known, key=lambda one: self._read_at.get(one, 0)):
            if len(asked) >= MIRRORS:
                break
            asked[run_id] = None
        return list(asked)[:MIRRORS]

    def _scopes_in_turn(self) -> list[str]:
        """Return the limits that are read now: those that held runs back, and a few jobs in turn."""
        asked = dict.fromkeys(list(self._scopes)[:_SCOPES_FIRST])
        if self._jobs:
            self._turn %= len(self._jobs)
            asked |= dict.fromkeys((self._jobs + self._jobs)[self._turn : self._turn + min(_SCOPES, len(self._jobs))])
            self._turn += _SCOPES
        return list(asked)

    # --- answers

    def _take_server(self, info: Any, memory: Any) -> None:
        if isinstance(info, dict) and (version := info.get("valkey_version") or info.get("redis_version")):
            self._server = f"{'Valkey' if 'valkey_version' in info else 'Redis'} {version}"
        if isinstance(memory, dict) and self._server:
            used, most = memory.get("used_memory_human", "?"), memory.get("maxmemory") or 0
            share = f" ({100 * memory.get('used_memory', 0) / most:.0f} % of its maximum)" if most else ""
            self._server = f"{self._server.partition(',')[0]}, {used} used{share}"

    def _take_mirrors(self, got: dict[Any, Any], run_ids: Iterable[str]) -> None:
        for run_id in run_ids:
            values = got["mirror", run_id]
            self._mirrors[run_id] = {
                name: raw.decode(errors="replace")
                for name, raw in zip(MIRROR_FIELDS, values, strict=True)
                if raw is not None
            }
            self._read_at[run_id] = self._looks

    def _known_jobs(self, counts: Collection[tuple[str, str]]) -> list[str]:
        """Return the jobs with an ended, running or waiting run; paused ones, too, so that they can be resumed."""
        return sorted({job for job, _ in counts} | {one["job"] for one in self._mirrors.values() if one.get("job")})

    def _is_fresh(self, run_id: str) -> bool:
        return self._read_at[run_id] == self._looks

    def _due_now(self, got: dict[Any, Any], owners: Collection[str]) -> list[str]:
        """Return runs without a worker, which may be paused or between two attempts."""
        found = dict.fromkeys(
            run_id.decode(errors="replace") for queue in self._queues for run_id in got["due", queue]
        ) | dict.fromkeys(sorted(_names(got["paused"][1]))[:_DUE])
        return [run_id for run_id in found if run_id not in owners]

    def _forget(self, owners: Collection[str]) -> None:
        """Drop the mirrors of ended runs, and of runs without one."""
        for run_id, mirror in list(self._mirrors.items()):
            if run_id not in owners and mirror.get("state", "succeeded") in ENDED:
                del self._mirrors[run_id], self._read_at[run_id]

    def _queues_of(self, workers: dict[str, dict[str, Any]]) -> list[str]:
        ours = self._settings.worker.queues or [self._settings.worker.queue]
        others = {str(one.get("queue")) for one in workers.values()}
        others |= {mirror["queue"] for mirror in self._mirrors.values() if mirror.get("queue")}
        return list(dict.fromkeys([*ours, *sorted(others)]))[:_QUEUES]

    def _runs(
        self,
        owners: dict[str, str],
        workers: dict[str, dict[str, Any]],
        orders: Orders,
        held: dict[str, str],
        now: datetime,
    ) -> list[RunLine]:
        lines = [
            line_of(
                run_id,
                self._mirrors.get(run_id, {}),
                orders,
                now,
                worker=name,
                worker_state=workers.get(name, {}).get("state"),
            )
            for run_id, name in owners.items()
        ]
        lines.sort(key=lambda line: (-(line.seconds or 0.0), line.id))
        idle = [
            line_of(run_id, mirror, orders, now, held_by=held.get(run_id))
            for run_id, mirror in self._mirrors.items()
            if run_id not in owners and self._is_fresh(run_id)  # an old mirror may miss the end of the run
        ]
        return lines + sorted(idle, key=lambda line: line.id)

    def _queue(
        self,
        name: str,
        got: dict[Any, Any],
        owners: dict[str, str],
        workers: dict[str, dict[str, Any]],
        orders: Orders,
        now: float,
    ) -> QueueLine:
        running = sum(
            (self._mirrors.get(run_id, {}).get("queue") or workers[owner].get("queue")) == name
            for run_id, owner in owners.items()
        )
        head = got.get(("head", name))
        due = head[0][1] / 1000 if head else 0.0
        return QueueLine(
            name=name,
            waiting=got.get(("waiting", name), 0),
            deferred=max(0, got.get(("later", name), 0) - running),  # a running job is due again when its lease ends
            running=running,
            oldest_seconds=now - due if 0 < due <= now else None,
            paused=not orders.paused.isdisjoint((name, keys.ALL)),
        )

    def _job_lines(self, counts: dict[tuple[str, str], int], owners: Collection[str], orders: Orders) -> list[JobLine]:
        running: dict[str, int] = {}
        for run_id in owners:
            if job := self._mirrors.get(run_id, {}).get("job"):
                running[job] = running.get(job, 0) + 1
        return [
            JobLine(
                name=name,
                running=running.get(name, 0),
                done_rate=self._rates.of("succeeded", name),
                failed_rate=self._rates.of("dead", name),
                done=counts.get((name, "succeeded"), 0),
                failed=counts.get((name, "dead"), 0),
                cancelled=counts.get((name, "cancelled"), 0),
                paused=not orders.paused.isdisjoint((name, keys.ALL)),
            )
            for name in self._jobs
        ]

    def _holds(self, got: dict[Any, Any], scopes: list[str], orders: Orders, now: float) -> list[Hold]:
        self._cursor, found = got["scan"]
        self._scopes |= dict.fromkeys(key.decode(errors="replace").removeprefix(keys.HELD) for key in found)
        known_queues, known_jobs = set(self._queues), set(self._jobs)
        holds = [
            Hold("pause", name, _kind(name, known_queues, known_jobs) + " paused by order")
            for name in sorted(orders.paused)
        ]
        holds += [
            Hold("pace", name, f"{raw} rows/s by order, {_kind(name, known_queues, known_jobs)}")
            for name, raw in sorted(_texts(got["pace"][1]).items())
        ]
        ordered = {"limit": _texts(got["limits"][1]), "rate": _texts(got["rates"][1])}
        for scope in scopes:
            waiting, inside = got["held", scope], got["inside", scope]
            first, moment = got["first", scope], got["moment", scope]
            if waiting:
                since = now - first[0][1] / 1000 if first else None
                holds.append(Hold("limit", scope, f"{inside} at work, no more at once", waiting, since))
                self._scopes[scope] = None
            else:
                self._scopes.pop(scope, None)
            if moment is not None and float(moment) / 1000 - now > 1:
                holds.append(Hold("rate", scope, f"the next may begin in {float(moment) / 1000 - now:.0f} s"))
                self._scopes[scope] = None
        holds += [Hold("limit", job, f"{number} at once by order") for job, number in sorted(ordered["limit"].items())]
        holds += [Hold("rate", job, f"{number} a second by order") for job, number in sorted(ordered["rate"].items())]
        return holds


def _ask_for_scopes(trip: _Trip, scopes: Iterable[str]) -> None:
    for scope in scopes:
        trip.ask(("inside", scope)).zcard(keys.LIMIT + scope)
        trip.ask(("held", scope)).zcard(keys.HELD + scope)
        trip.ask(("first", scope)).zrange(keys.HELD + scope, 0, _DUE - 1, withscores=True)
        trip.ask(("moment", scope)).get(keys.RATE + scope)


def _worker(name: str, values: dict[str, Any], orders: Orders, now: datetime) -> WorkerLine:
    state = str(values.get("state", ""))
    return WorkerLine(
        name=name,
        host=str(values.get("host", "")),
        pid=int(values.get("pid") or 0),
        queue=str(values.get("queue", "")),
        state="draining" if state == "running" and name in orders.drained else state,
        used=len(values.get("jobs", ())),
        slots=int(values.get("max_jobs") or 0),
        seen_seconds=max(0.0, (now - datetime.fromisoformat(values["seen_at"])).total_seconds()),
        up_seconds=max(0.0, (now - datetime.fromisoformat(values["started_at"])).total_seconds())
        if values.get("started_at")
        else 0.0,
        done=int(values.get("done") or 0),
    )


def _counts(raw: dict[bytes, bytes]) -> dict[tuple[str, str], int]:
    counts = {}
    for name, number in _texts(raw).items():
        job, _, state = name.rpartition(":")
        if number.isdigit():
            counts[job, state] = int(number)
    return counts


def _kind(name: str, queues: Collection[str], jobs: Collection[str]) -> str:
    if name == keys.ALL:
        return "everything"
    return "queue" if name in queues else "job" if name in jobs else "run"


def _names(raw: Iterable[bytes]) -> frozenset[str]:
    return frozenset(name.decode(errors="replace") for name in raw)


def _texts(raw: dict[bytes, bytes]) -> dict[str, str]:
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, value in raw.items()}
