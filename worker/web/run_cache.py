"""A cache of runs: only those that have changed are read again."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import NamedTuple

from worker.queue import keys
from worker.queue.client import Client
from worker.queue.overview import describe_payload
from worker.queue.run import decode_fields

_KEPT_SECONDS = 60.0
_MOST_RUNS = 2_000


class KnownRun(NamedTuple):
    """The state of a run in Redis.

    Attributes:
        fields: the fields of its mirror; none before its first attempt.
        job: the name of its job; `?` if it is not known.
        is_claimed: whether a worker has claimed it, as far as that was asked for.
    """

    fields: dict[str, str]
    job: str
    is_claimed: bool = False


class _Entry(NamedTuple):
    run: KnownRun
    mark: Hashable
    at: float


class RunCache:
    """Reads runs, and remembers them while it is told which of them have changed.

    A worker writes a mirror, the event about its run, and its own entry in one transaction. So a run is as it was read
    if it has had no event since, and its mark is the same.

    Args:
        client: the client of the queue.
    """

    def __init__(self, client: Client) -> None:
        self._client = client
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._changed: list[set[str]] = []  # the runs that have changed since a read has begun, for each read
        self._is_told = False

    def begin(self) -> None:
        """Remember runs from now on: `forget` is called for each event."""
        self._is_told = True

    def end(self) -> None:
        """Remember no run: events may be missed."""
        self._is_told = False
        self._entries.clear()

    def forget(self, run_id: str) -> None:
        """Read a run again the next time: an event tells of it."""
        self._entries.pop(run_id, None)
        for changed in self._changed:
            changed.add(run_id)

    async def read(self, marks: Mapping[str, Hashable], *, claims: Collection[str] = ()) -> dict[str, KnownRun]:
        """Return runs by their ids.

        Args:
            marks: the runs, each with a value that is another one if the run may have changed without an event: the
                score of a run that waits, the time at which the worker of a run was seen last.
            claims: the runs of which to read whether a worker has claimed them: a claim changes their score.

        Raises:
            ServerUnavailable: Redis does not answer.
        """
        oldest = time.monotonic() - _KEPT_SECONDS
        known = {
            run_id: entry.run
            for run_id, mark in marks.items()
            if (entry := self._entries.get(run_id)) is not None and entry.mark == mark and entry.at > oldest
        }
        missing = [run_id for run_id in marks if run_id not in known]
        if missing:
            known |= await self._read(missing, marks, [run_id for run_id in missing if run_id in claims])
        return known

    async def _read(
        self, run_ids: Sequence[str], marks: Mapping[str, Hashable], claims: Sequence[str]
    ) -> dict[str, KnownRun]:
        changed: set[str] = set()
        self._changed.append(changed)
        try:
            claimed = await self._read_claims(claims)
            mirrors = await read_mirrors(self._client, run_ids)
            jobs = await self._read_jobs([one for one in run_ids if not mirrors[one].get("job")])
        finally:
            self._changed.remove(changed)
        found = {one: KnownRun(mirrors[one], mirrors[one].get("job") or jobs[one], one in claimed) for one in run_ids}
        if self._is_told:
            now = time.monotonic()
            for run_id in found.keys() - changed:
                self._entries[run_id] = _Entry(found[run_id], marks[run_id], now)
                self._entries.move_to_end(run_id)
            while len(self._entries) > _MOST_RUNS:
                self._entries.popitem(last=False)
        return found

    async def _read_claims(self, run_ids: Sequence[str]) -> set[str]:
        """Return the runs that a worker has claimed: by one command if it is none of them, as nearly always."""
        redis = self._client.redis
        if not run_ids or not await self._client.command(redis.exists(*(keys.IN_PROGRESS + one for one in run_ids))):
            return set()
        pipeline = redis.pipeline(transaction=False)
        for run_id in run_ids:
            pipeline.exists(keys.IN_PROGRESS + run_id)
        answers = await self._client.command(pipeline.execute(raise_on_error=False))
        return {run_id for run_id, answer in zip(run_ids, answers, strict=True) if answer == 1}

    async def _read_jobs(self, run_ids: Sequence[str]) -> dict[str, str]:
        """Return the names of the jobs of runs that have no mirror, from their payloads."""
        if not run_ids:
            return {}
        pipeline = self._client.redis.pipeline(transaction=False)
        for run_id in run_ids:
            pipeline.get(keys.JOB + run_id)
        answers = await self._client.command(pipeline.execute(raise_on_error=False))
        return {
            run_id: describe_payload(raw if isinstance(raw, bytes) else None)[0]
            for run_id, raw in zip(run_ids, answers, strict=True)
        }


async def read_mirrors(client: Client, run_ids: Sequence[str]) -> dict[str, dict[str, str]]:
    """Return the fields of the mirrors of runs, by id; none for a run without a mirror.

    Raises:
        ServerUnavailable: Redis does not answer.
    """
    if not run_ids:
        return {}
    pipeline = client.redis.pipeline(transaction=False)
    for run_id in run_ids:
        pipeline.hgetall(keys.RUN + run_id)
    answers = await client.command(pipeline.execute(raise_on_error=False))
    return {
        run_id: decode_fields(answer) if isinstance(answer, dict) else {}
        for run_id, answer in zip(run_ids, answers, strict=True)
    }
