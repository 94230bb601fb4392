"""Reads frames from Redis: one round trip a look, two if runs have begun, and never the whole of a large key.

Large keys are read in part: the mirrors of a limited number of runs (those on the screen each time, the others in
rotation), the newest dead letters by their times (each once, because a letter does not change), the first due runs,
a few limits in rotation, one step of a SCAN. Hashes and sets are read with HSCAN and SSCAN: their first thousand or so.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from typing import Any

from redis.exceptions import RedisError, ResponseError

from worker.cli.top.frame_builder import (
    Look,
    Mirror,
    Rates,
    build_holds,
    build_job_lines,
    build_queue_lines,
    build_run_lines,
    build_worker_lines,
    decode_counts,
    decode_names,
    seconds_until_start,
)
from worker.cli.top.model import Frame
from worker.cli.top.run_state import ENDED, Commands
from worker.queue import keys
from worker.queue.client import Client
from worker.queue.dead_letters import DeadLetter
from worker.queue.overview import describe_workers
from worker.settings import Settings, mask_passwords

#: Most mirrors of runs that a look reads.
MIRRORS = 200
#: Most dead letters that are shown.
LETTERS = 100
_FIELDS = 1_000  # of a hash or set
_DUE = 25  # runs at the front of each queue
_SOON_MS = 2_000  # a paused run is due again within this time
_SCOPES = 10  # limits that are read in rotation
_SCOPES_FIRST = 50
_SCAN = 200
_QUEUES = 50

MIRROR_FIELDS = (
    *("job", "state", "worker", "queue", "attempt", "takeovers", "started_at", "rows", "percent", "rate"),
    *(
        "percent_is_estimate",
        "eta_seconds",
        "throttled",
        "throttled_since",
        "throttled_until",
        "stalled_since",
        "error",
    ),
)


class _Trip:
    """The commands of one round trip, each with a name for its reply."""

    def __init__(self, client: Client) -> None:
        self._pipeline = client.redis.pipeline(transaction=False)
        self._names: list[Any] = []

    def ask(self, name: Any) -> Any:
        """Return the pipeline, on which the caller puts the one command that this name is for."""
        self._names.append(name)
        return self._pipeline

    def __len__(self) -> int:
        return len(self._names)

    async def replies(self) -> dict[Any, Any]:
        """Send the commands.

        Raises:
            RedisError: Redis does not answer, or refuses a command other than INFO.
        """
        found = dict(zip(self._names, await self._pipeline.execute(raise_on_error=False), strict=True))
        for name, reply in found.items():
            if isinstance(reply, Exception) and not (name == "info" and isinstance(reply, ResponseError)):
                raise reply
        return found


class Reader:
    """Reads frames. Caches values that do not change, and the position of each rotation.

    Args:
        client: The connection to Redis.
        settings: Queues and leases.
    """

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        self._rates = Rates()
        self._ahead_ms = 0.0  # by which the server's clock is ahead of ours
        self._server = ""
        self._queues = list(settings.worker.queues or [settings.worker.queue])
        self._mirrors: dict[str, Mirror] = {}
        self._read_at: dict[str, int] = {}  # number of the look that read a run's mirror
        self._running: frozenset[str] = frozenset()
        self._due: list[str] = []
        self._letters: dict[str, tuple[float, DeadLetter | None]] = {}
        self._jobs: list[str] = []
        self._scopes: dict[str, None] = {}  # limits that hold runs back
        self._next_scope = 0
        self._cursor = 0
        self._looks = 0

    async def read(self, shown: Iterable[str] = ()) -> Frame:
        """Return a frame of this moment.

        Args:
            shown: Ids of the runs on the screen, whose mirrors are read each time.

        Raises:
            RedisError: Redis does not answer.
        """
        self._looks += 1
        first = _Trip(self._client)
        mirrors, scopes = self._choose_mirrors(shown), self._choose_scopes()
        self._ask_for_all(first)
        self._ask_for_mirrors(first, mirrors)
        _ask_for_scopes(first, scopes)
        try:
            replies = await first.replies()
        except (RedisError, OSError):
            self._server = ""  # another server may answer next time
            raise
        look = self._take_first(replies, mirrors, scopes)
        second = _Trip(self._client)
        await self._read_more(second, look, len(mirrors))
        self._forget_ended(look.owners)
        self._queues = self._list_queues(look.workers)
        self._note_scopes(look)
        look.queues, look.jobs, look.mirrors = self._queues, self._jobs, self._mirrors
        look.fresh = {run_id for run_id in self._mirrors if self._is_fresh(run_id)}
        return self._build_frame(look, len(first) + len(second), 2 if len(second) else 1)

    def _take_first(self, replies: dict[Any, Any], mirrors: list[str], scopes: list[str]) -> Look:
        """Decode the replies of the first round trip."""
        seconds, micros = replies["time"]
        now = seconds + micros / 1e6
        self._ahead_ms = (now - time.time()) * 1000
        self._take_server(replies["info"], replies["memory"])
        moment = datetime.fromtimestamp(now, UTC)
        workers = describe_workers(replies["workers"][1], self._settings.worker.lease_seconds, moment)
        owners = {
            run_id: name for name, worker in workers.items() if worker["state"] != "lost" for run_id in worker["jobs"]
        }
        counts = decode_counts(replies["jobs"][1])
        self._rates.add(now, counts)
        self._take_mirrors(replies, mirrors)
        commands = Commands(*(decode_names(replies[name][1]) for name in ("paused", "cancelled", "drain")))
        return Look(replies, now, moment, workers, owners, counts, commands, scopes=scopes)

    async def _read_more(self, trip: _Trip, look: Look, mirrors_read: int) -> None:
        """Read the values that the first round trip has shown to be new: mirrors, dead letters, and limits at the
        start."""
        new = [run_id for run_id in look.owners if run_id not in self._mirrors]
        new += [run_id for run_id in self._mirrors if run_id not in look.owners and not self._is_fresh(run_id)]
        del new[max(0, MIRRORS - mirrors_read) :]
        self._running = frozenset(look.owners)
        self._due = self._list_due(look)
        if self._looks == 1:
            new += self._due
        self._ask_for_mirrors(trip, new)
        letters = {run_id.decode(errors="replace"): at for run_id, at in look.replies["dead at"]}
        unread = [run_id for run_id, at in letters.items() if self._letters.get(run_id, (None,))[0] != at]
        if unread:
            trip.ask("letters").hmget(keys.DEAD, unread)
        self._jobs = self._list_jobs(look.counts)
        if self._looks == 1:
            look.scopes = self._jobs[:_SCOPES_FIRST]
            _ask_for_scopes(trip, look.scopes)
        if len(trip):
            more = await trip.replies()
            self._take_mirrors(more, new)
            for run_id, raw in zip(unread, more.get("letters", ()), strict=True):
                self._letters[run_id] = (letters[run_id], None if raw is None else DeadLetter.read(run_id, raw))
            look.replies |= more
            self._jobs = self._list_jobs(look.counts)
        self._letters = {run_id: self._letters[run_id] for run_id in letters}

    def _build_frame(self, look: Look, commands: int, trips: int) -> Frame:
        return Frame(
            at=look.moment,
            server=self._server,
            url=mask_passwords(self._settings.redis.url),
            queues=build_queue_lines(look),
            jobs=build_job_lines(look, self._rates),
            runs=build_run_lines(look),
            running=len(look.owners),
            workers=build_worker_lines(look),
            workers_known=look.replies["workers known"],
            failures=[letter for _, letter in self._letters.values() if letter is not None],
            failed=look.replies["dead"],
            holds=build_holds(look),
            done_rate=self._rates.rate("succeeded"),
            failed_rate=self._rates.rate("dead"),
            history=self._rates.history,
            commands=commands,
            trips=trips,
        )

    # --- choice of keys to read

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

    def _choose_mirrors(self, shown: Iterable[str]) -> list[str]:
        """Return the runs whose mirrors to read now: on the screen, due, and the longest unread, in this order."""
        known = self._running | self._mirrors.keys()
        asked = dict.fromkeys(run_id for run_id in shown if run_id in known)
        asked |= dict.fromkeys(self._due)
        for run_id in sorted(known, key=lambda one: self._read_at.get(one, 0)):
            if len(asked) >= MIRRORS:
                break
            asked[run_id] = None
        return list(asked)[:MIRRORS]

    def _choose_scopes(self) -> list[str]:
        """Return the limits to read now: the ones that held runs back, and a few jobs in rotation."""
        asked = dict.fromkeys(list(self._scopes)[:_SCOPES_FIRST])
        if self._jobs:
            first = self._next_scope % len(self._jobs)
            asked |= dict.fromkeys((self._jobs + self._jobs)[first : first + min(_SCOPES, len(self._jobs))])
            self._next_scope = first + _SCOPES
        return list(asked)

    # --- cached values

    def _take_server(self, info: Any, memory: Any) -> None:
        if isinstance(info, dict) and (version := info.get("valkey_version") or info.get("redis_version")):
            self._server = f"{'Valkey' if 'valkey_version' in info else 'Redis'} {version}"
        if isinstance(memory, dict) and self._server:
            used, most = memory.get("used_memory_human", "?"), memory.get("maxmemory") or 0
            share = f" ({100 * memory.get('used_memory', 0) / most:.0f} % of its maximum)" if most else ""
            self._server = f"{self._server.partition(',')[0]}, {used} used{share}"

    def _take_mirrors(self, replies: dict[Any, Any], run_ids: Iterable[str]) -> None:
        for run_id in run_ids:
            values = replies["mirror", run_id]
            self._mirrors[run_id] = {
                name: raw.decode(errors="replace")
                for name, raw in zip(MIRROR_FIELDS, values, strict=True)
                if raw is not None
            }
            self._read_at[run_id] = self._looks

    def _note_scopes(self, look: Look) -> None:
        """Store the limits that hold runs back, and the limits that the SCAN has found."""
        self._cursor, found = look.replies["scan"]
        self._scopes |= dict.fromkeys(key.decode(errors="replace").partition(keys.HELD)[2] for key in found)
        for scope in look.scopes:
            if look.replies["held", scope] or seconds_until_start(look, scope) > 1:
                self._scopes[scope] = None
            else:
                self._scopes.pop(scope, None)

    def _list_jobs(self, counts: Collection[tuple[str, str]]) -> list[str]:
        """Return the jobs that have runs. A paused job is listed as well, so that it can be resumed."""
        return sorted({job for job, _ in counts} | {one["job"] for one in self._mirrors.values() if one.get("job")})

    def _is_fresh(self, run_id: str) -> bool:
        return self._read_at[run_id] == self._looks

    def _list_due(self, look: Look) -> list[str]:
        """Return runs that no worker runs: they may be paused, or wait for another attempt."""
        found = dict.fromkeys(
            run_id.decode(errors="replace") for queue in self._queues for run_id in look.replies["due", queue]
        ) | dict.fromkeys(sorted(look.commands.paused)[:_DUE])
        return [run_id for run_id in found if run_id not in look.owners]

    def _forget_ended(self, owners: Collection[str]) -> None:
        """Forget the mirrors of runs that have ended, or have no mirror."""
        for run_id, mirror in list(self._mirrors.items()):
            if run_id not in owners and mirror.get("state", "succeeded") in ENDED:
                del self._mirrors[run_id], self._read_at[run_id]

    def _list_queues(self, workers: dict[str, dict[str, Any]]) -> list[str]:
        ours = self._settings.worker.queues or [self._settings.worker.queue]
        others = {str(one.get("queue")) for one in workers.values()}
        others |= {mirror["queue"] for mirror in self._mirrors.values() if mirror.get("queue")}
        return list(dict.fromkeys([*ours, *sorted(others)]))[:_QUEUES]


def _ask_for_scopes(trip: _Trip, scopes: Iterable[str]) -> None:
    for scope in scopes:
        trip.ask(("inside", scope)).zcard(keys.LIMIT + scope)
        trip.ask(("held", scope)).zcard(keys.HELD + scope)
        trip.ask(("first", scope)).zrange(keys.HELD + scope, 0, _DUE - 1, withscores=True)
        trip.ask(("moment", scope)).get(keys.RATE + scope)
