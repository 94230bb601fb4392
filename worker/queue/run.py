"""The client's handle of a run: wait for it, watch it, cancel it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, cast

from worker.awaiting import track_awaits
from worker.errors import JobCancelled, JobFailed, ResultTooLarge
from worker.job.definition import Job
from worker.queue import keys
from worker.queue.errors import PipelineInterrupted
from worker.queue.payload import now_ms
from worker.queue.result import decode_result
from worker.queue.run_reader import RunReader

R = TypeVar("R")

Status = Literal["deferred", "waiting", "running", "paused", "succeeded", "incomplete", "dead", "cancelled", "unknown"]

_POLL_SECONDS = 0.1
#: Longest time without a notification after which the result is read again.
_SURE_SECONDS = 5.0
_MIRROR_SECONDS = 1.5
#: Begins the error of a run that has ended, and has left rows undone.
INCOMPLETE = "incomplete: "
ENDED = ("succeeded", "incomplete", "dead", "cancelled")


@dataclass(frozen=True)
class ProgressReport:
    """The progress of a run from the mirror in Redis. A value is None if it is not known (yet).

    Attributes:
        state: the state that `Run.status` returns.
        rows: rows processed in all its loops.
        total: rows to process in this step, by the planner's estimate.
        percent: 0 to 100, of this step.
        is_estimate: whether `percent` is a rough estimate: key and planner's statistics differ by far.
        rate: rows per second.
        eta_seconds: estimated seconds until the end of this step.
        batch_size: rows of the last batch.
        worker: name of the worker that runs it.
        error: the error of the last attempt.
        fields: the whole hash `worker:run:<id>`.
    """

    state: Status
    rows: int
    total: int | None
    percent: float | None
    rate: float | None
    eta_seconds: float | None
    batch_size: int | None
    worker: str | None
    error: str | None
    fields: dict[str, str]
    is_estimate: bool = False


@track_awaits("run")
class Run(Generic[R]):
    """An enqueued run.

    Attributes:
        id: id of the run, and of arq's job.
        is_new: False if this is an existing run: the id is in the queue, its result is still known, or the job is
            unique and a run with these arguments exists.
        replaced: True if it replaced a waiting run with the same id.
        next_runs: the runs that follow it, in order; none if it is not new.
    """

    def __init__(
        self,
        reader: RunReader,
        run_id: str,
        queue: str,
        job: Job[..., R] | None,
        *,
        is_new: bool = False,
        replaced: bool = False,
        next_runs: Sequence[Run[Any]] = (),
    ) -> None:
        self._reader = reader
        self._job = job
        self._queue = queue
        self.id = run_id
        self.is_new = is_new
        self.replaced = replaced
        self.next_runs = tuple(next_runs)

    def __repr__(self) -> str:
        return f"<Run {self.id}>"

    async def result(self, timeout: float | None = None) -> R:
        """Wait until the run has ended, and return the job's result in the type that its function declares.

        The result of a run of the outbox that was dropped as a duplicate is that of the run that was kept.

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
        try:
            async with asyncio.timeout(timeout) as limit:
                raw = await self._ended()
        except TimeoutError:
            if not limit.expired():
                raise
            raise TimeoutError(f"run {self.id} has not ended within {timeout:g} s; it continues") from None
        return self.decode_end(raw)

    def decode_end(self, raw: bytes) -> R:
        """Return the result of the job from the value of `arq:result:<id>`; `result` describes the errors."""
        result = decode_result(raw)
        if result.cancelled:
            raise JobCancelled(f"run {self.id}: {result.value}")
        if not result.success:
            raise JobFailed(f"run {self.id}: {result.value}")
        if result.too_large:
            raise ResultTooLarge(
                f"run {self.id} succeeded, but its result of {result.too_large:,} bytes exceeds "
                f"worker.max_result_bytes and was not stored; return a key of a table instead"
            )
        return cast(R, self._job.decode_result(result.value) if self._job else result.value)

    async def read_end(self) -> bytes | None:
        """Return the value of `arq:result:<id>`, or of the run whose duplicate this one was; None without an end."""
        raw = (await self._reader.look(keys.RESULT + self.id))[0]
        kept = None if raw is None else await self._find_kept(raw)
        return raw if kept is None else await kept.read_end()

    async def _find_kept(self, raw: bytes) -> Run[R] | None:
        """Return the run whose duplicate this one was, if the relay of the outbox has dropped it.

        Raises:
            JobFailed: that run has ended, and its result has expired.
        """
        if b'"kept":' not in raw or not (kept := decode_result(raw).kept):
            return None
        run = Run(self._reader, kept, self._queue, self._job)
        if await run.status() == "unknown":
            raise JobFailed(f"run {self.id} was dropped as a duplicate of the run {kept}, whose result has expired")
        return run

    async def _ended(self) -> bytes:
        key = keys.RESULT + self.id
        looked = False
        while True:
            raw, written = await self._reader.look(key)
            if raw is not None:
                kept = await self._find_kept(raw)
                return raw if kept is None else await kept._ended()
            if not looked:
                await self.check_result_kept()
                looked = True
            try:
                async with asyncio.timeout(_SURE_SECONDS if written is not None else _POLL_SECONDS):
                    await (written or asyncio.Event()).wait()
            except TimeoutError:
                looked = False

    async def status(self) -> Status:
        """Return the state of the run; `unknown` if Redis does not have the run."""
        return (await self.look())[0]

    async def progress(self, every: float = 0.5) -> AsyncIterator[ProgressReport]:
        """Yield reports until the run has ended: `async for report in run.progress()`.

        Args:
            every: seconds between two reports; the worker writes twice a second.
        """
        while True:
            state, fields = await self.look()
            if state in ENDED:
                yield make_report(state, await self._last_fields(state, fields))
                return
            yield make_report(state, fields)
            if state == "unknown":
                await self.check_result_kept()
            await asyncio.sleep(every)

    async def cancel(self) -> bool:
        """Cancel the run: at its next batch boundary, or before it begins. Does not wait for the end.

        Returns:
            False if the run neither waits nor runs.
        """
        return bool(await self._reader.command(self._reader.store.cancel(self.id, queue=self._queue)))

    async def look(self) -> tuple[Status, dict[str, str]]:
        """Return the state of the run, and the fields of its mirror."""
        raw, running, score, mirror = await self._reader.command(self._read_keys())
        return read_status(raw, bool(running), score, mirror)

    async def _read_keys(self) -> list[Any]:
        for is_last in (False, False, True):
            pipeline = self._reader.redis.pipeline(transaction=True)
            pipeline.get(keys.RESULT + self.id)
            pipeline.exists(keys.IN_PROGRESS + self.id)
            pipeline.zscore(self._queue, self.id)
            pipeline.hgetall(keys.RUN + self.id)
            try:
                return await pipeline.execute()
            except PipelineInterrupted:  # of a cluster: reads can be repeated
                if is_last:
                    raise
        raise AssertionError

    async def _last_fields(self, state: Status, fields: dict[str, str]) -> dict[str, str]:
        """Wait for the last update of the mirror, which follows the result within a second, if there is a mirror."""
        for _ in range(round(_MIRROR_SECONDS / _POLL_SECONDS)):
            if not fields or fields.get("state") == state:
                break
            await asyncio.sleep(_POLL_SECONDS)
            fields = (await self.look())[1]
        return fields

    async def check_result_kept(self) -> None:
        """Raise `JobFailed` if the run has ended, and its result has expired."""
        state, fields = await self.look()
        if state in ENDED and not await self._reader.command(self._reader.redis.exists(keys.RESULT + self.id)):
            raise JobFailed(
                f"run {self.id} has ended as {state}, and its result has expired"
                + (f": {fields['error']}" if fields.get("error") else "")
            )


def read_status(
    result: bytes | None, is_running: bool, score: float | None, mirror: dict[bytes, bytes]
) -> tuple[Status, dict[str, str]]:
    """Return the state of a run, and the fields of its mirror.

    Args:
        result: value of `arq:result:<id>`.
        is_running: whether `arq:in-progress:<id>` exists.
        score: due time of the run in its queue, in ms since 1970; None if the queue does not have it.
        mirror: the hash `worker:run:<id>`.
    """
    fields = decode_fields(mirror)
    state: Status
    if result is not None:
        ended = decode_result(result)
        state = "succeeded" if ended.success else "cancelled" if ended.cancelled else "dead"
        if state == "dead" and str(ended.value).startswith(INCOMPLETE):
            state = "incomplete"
    elif is_running:
        state = "running"
    elif score is not None:
        state = "paused" if fields.get("state") == "paused" else "deferred" if score > now_ms() else "waiting"
    elif fields.get("state") in ENDED:
        state = cast(Status, fields["state"])
    else:
        state = "unknown"
    return state, fields


def decode_fields(mirror: Mapping[bytes, bytes]) -> dict[str, str]:
    """Return the fields of a hash as text. Bytes that are not UTF-8 are shown as escapes."""
    return {
        name.decode(errors="backslashreplace"): value.decode(errors="backslashreplace")
        for name, value in mirror.items()
    }


def make_report(state: Status, fields: dict[str, str]) -> ProgressReport:
    """Return the report of a run in a state, with the fields of its mirror."""

    def number(name: str) -> float | None:
        try:
            value = float(fields.get(name) or "nan")
        except ValueError:
            return None
        return value if math.isfinite(value) else None

    total, size = number("total"), number("batch_size")
    return ProgressReport(
        state=state,
        rows=int(number("rows") or 0),
        total=None if total is None else int(total),
        percent=number("percent"),
        rate=number("rate"),
        eta_seconds=number("eta_seconds"),
        batch_size=None if size is None else int(size),
        worker=fields.get("worker"),
        error=fields.get("error") or None,
        fields=fields,
        is_estimate=bool(fields.get("percent_is_estimate")),
    )
