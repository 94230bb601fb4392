"""A run as the service that enqueued it has it: to wait for, to watch, to cancel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, cast

from worker.errors import JobCancelled, JobFailed, ResultTooLarge
from worker.job.definition import Job
from worker.queue import keys
from worker.queue.payload import now_ms
from worker.queue.result import decode_result

if TYPE_CHECKING:
    from worker.queue.client import Client

R = TypeVar("R")

Status = Literal["deferred", "waiting", "running", "paused", "succeeded", "dead", "cancelled", "unknown"]

_POLL_SECONDS = 0.1
#: Longest wait for word of a result before it is looked for all the same.
_SURE_SECONDS = 5.0
_MIRROR_SECONDS = 1.5
_ENDED = ("succeeded", "dead", "cancelled")


@dataclass(frozen=True)
class ProgressReport:
    """How far a run is, as the mirror has it; None for what is not known (yet).

    Attributes:
        state: as `Run.status` returns it.
        rows: rows done in all its loops.
        total: rows to do in this step, by the planner's estimate.
        percent: 0 to 100, of this step.
        rate: rows a second.
        eta_seconds: time left of this step.
        batch_size: rows of the last batch.
        worker: name of the worker that has it.
        error: of the last try.
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


class Run(Generic[R]):
    """A run that was enqueued.

    Attributes:
        id: id of the run, and of arq's job.
        is_new: False when the id was in the queue, or its result still known, or the job is unique and there: it is
            the run that is there.
        replaced: True when it took the place of the run that waited there.
        then: the runs that follow it, in their order; none where it is not new.
    """

    def __init__(
        self,
        client: Client,
        run_id: str,
        queue: str,
        job: Job[..., R] | None,
        *,
        is_new: bool = False,
        replaced: bool = False,
        then: Sequence[Run[Any]] = (),
    ) -> None:
        self._client = client
        self._job = job
        self._queue = queue
        self.id = run_id
        self.is_new = is_new
        self.replaced = replaced
        self.then = tuple(then)

    def __repr__(self) -> str:
        return f"<Run {self.id}>"

    async def result(self, timeout: float | None = None) -> R:
        """Wait for the end, and return what the job returned, in the type that its function promises.

        Args:
            timeout: seconds; None to wait for ever.

        Raises:
            JobFailed: the job ended with an error.
            JobCancelled: it was cancelled by order.
            ResultTooLarge: it succeeded, but its result was not kept.
            TimeoutError: it has not ended in that time.
        """
        try:
            async with asyncio.timeout(timeout) as limit:
                result = decode_result(await self._ended())
        except TimeoutError:
            if not limit.expired():
                raise
            raise TimeoutError(f"run {self.id} has not ended within {timeout:g} s; it goes on") from None
        if result.cancelled:
            raise JobCancelled(f"run {self.id}: {result.value}")
        if not result.success:
            raise JobFailed(f"run {self.id}: {result.value}")
        if result.too_large:
            raise ResultTooLarge(
                f"run {self.id} succeeded, but its result of {result.too_large} bytes is over "
                f"worker.max_result_bytes and was not kept; return a key of a table instead"
            )
        return cast(R, self._job.decode_result(result.value) if self._job else result.value)

    async def _ended(self) -> bytes:
        key = keys.RESULT + self.id
        looked = False
        while True:
            raw, written = await self._client.look(key)
            if raw is not None:
                return raw
            if not looked:
                await self._refuse_forgotten()
                looked = True
            try:
                async with asyncio.timeout(_SURE_SECONDS if written is not None else _POLL_SECONDS):
                    await (written or asyncio.Event()).wait()
            except TimeoutError:
                looked = False

    async def status(self) -> Status:
        """Return the state of the run: unknown when Redis has nothing of it (any more)."""
        return (await self._look())[0]

    async def progress(self, every: float = 0.5) -> AsyncIterator[ProgressReport]:
        """Report until the run has ended: `async for report in run.progress()`.

        Args:
            every: seconds between two looks; the worker writes twice a second.
        """
        while True:
            state, fields = await self._look()
            if state in _ENDED:
                yield _report(state, await self._last_fields(state, fields))
                return
            yield _report(state, fields)
            if state == "unknown":
                await self._refuse_forgotten()
            await asyncio.sleep(every)

    async def cancel(self) -> bool:
        """Order the run to end: at its next batch boundary, or before it begins. Does not wait for it.

        Returns:
            False where it neither waits nor runs.
        """
        return bool(await self._client.command(self._client.store.cancel(self.id, queue=self._queue)))

    async def _look(self) -> tuple[Status, dict[str, str]]:
        pipeline = self._client.redis.pipeline(transaction=True)
        pipeline.get(keys.RESULT + self.id)
        pipeline.exists(keys.IN_PROGRESS + self.id)
        pipeline.zscore(self._queue, self.id)
        pipeline.hgetall(keys.RUN + self.id)
        raw, running, score, mirrored = await self._client.command(pipeline.execute())
        fields = {name.decode(): value.decode() for name, value in mirrored.items()}
        state: Status
        if raw is not None:
            result = decode_result(raw)
            state = "succeeded" if result.success else "cancelled" if result.cancelled else "dead"
        elif running:
            state = "running"
        elif score is not None:
            state = "paused" if fields.get("state") == "paused" else "deferred" if score > now_ms() else "waiting"
        elif fields.get("state") in _ENDED:
            state = cast(Status, fields["state"])
        else:
            state = "unknown"
        return state, fields

    async def _last_fields(self, state: Status, fields: dict[str, str]) -> dict[str, str]:
        """The mirror follows the result within a second: wait for its last word, if there is a mirror at all."""
        for _ in range(round(_MIRROR_SECONDS / _POLL_SECONDS)):
            if not fields or fields.get("state") == state:
                break
            await asyncio.sleep(_POLL_SECONDS)
            fields = (await self._look())[1]
        return fields

    async def _refuse_forgotten(self) -> None:
        state, fields = await self._look()
        if state in _ENDED and not await self._client.command(self._client.redis.exists(keys.RESULT + self.id)):
            raise JobFailed(
                f"run {self.id} has ended as {state}, and its result is not kept any more"
                + (f": {fields['error']}" if fields.get("error") else "")
            )


def _report(state: Status, fields: dict[str, str]) -> ProgressReport:
    def number(name: str) -> float | None:
        return float(fields[name]) if fields.get(name) else None

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
    )
