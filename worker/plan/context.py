"""The context that a job gets while it is planned: its loops are described, and hand out no rows."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from datetime import datetime
from types import CodeType
from typing import Any

from worker.attempt.context import JobContext
from worker.batch.batch import Batch
from worker.batch.loops import make_chunks_source, make_stream_source, make_sweep_source
from worker.batch.options import SourceOptions, check_options
from worker.errors import AttemptExit
from worker.plan.what_follows import find_dependence


class PlanEnds(AttemptExit):
    """The plan cannot follow the job further. The message is the reason."""


class UnknownRows(int):
    """The number of rows of a loop that was only planned: a comparison ends the plan."""

    def _end(self, *_: object) -> bool:
        raise PlanEnds("the code that follows depends on the number of rows")

    __bool__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = _end
    __hash__ = int.__hash__


#: Describes a loop: kind, source, and the options of the engine.
Describe = Callable[[str, Any, Mapping[str, Any]], Awaitable[None]]


class PlannedLoop:
    """Stands for a walk: it is described when it is entered, and hands out no batch."""

    def __init__(self, describe: Describe, kind: str, source: Any, options: Mapping[str, Any]) -> None:
        self._describe = describe
        self._kind = kind
        self._source = source
        self._options = options
        self._place: tuple[CodeType, int] | None = None

    def __aiter__(self) -> PlannedLoop:
        frame = sys._getframe(1)
        self._place = frame.f_code, frame.f_lineno
        return self

    async def __anext__(self) -> Batch[Any]:
        await self._describe(self._kind, self._source, self._options)
        reason = None if self._place is None else find_dependence(*self._place)
        if reason is not None:
            raise PlanEnds(reason)
        raise StopAsyncIteration

    async def __aenter__(self) -> PlannedLoop:
        return self

    async def __aexit__(self, *_: object) -> None:
        return

    async def run(self) -> int:
        """Describe a sweep, and return a number that cannot be compared."""
        await self._describe(self._kind, self._source, self._options)
        return UnknownRows(0)


class PlanContext(JobContext):
    """The context of a job that is planned. Its sessions are read-only."""

    _describe: Describe
    _is_of_a_part = False
    _is_looking = True

    @property
    def rows_done(self) -> int:
        """A number that cannot be compared."""
        return UnknownRows(0)

    def chunks(self, statement: Any, **options: Any) -> Any:
        """Describe a loop of chunks."""
        return self._plan("chunks", make_chunks_source(statement, _sorting(options)), options)

    def stream(self, statement: Any, **options: Any) -> Any:
        """Describe a stream."""
        source = make_stream_source(self._attempt, statement, options)  # type: ignore[arg-type]
        return self._plan("stream", source, options)

    def sweep(self, statement: Any, **options: Any) -> Coroutine[Any, Any, int]:
        """Describe a sweep."""
        source = make_sweep_source(self._attempt, statement, _sorting(options))
        return self._attempt.calls.track("ctx.sweep", self._plan("sweep", source, options).run())

    def walk(self, source: Any, **options: Any) -> Any:
        """Describe the walk of a source, without opening it."""
        check_options("walk", options, SourceOptions)
        return self._plan(source.kind, source, options)

    def step(self, name: str, /, *_: Any, **__: Any) -> Any:
        """End the plan: a durable step runs a function, whose result the code behind it may need."""
        raise PlanEnds(f"step {name!r} runs a function, which a plan does not do")

    async def sleep(self, seconds: float, *, name: str | None = None) -> None:
        """Do not sleep."""

    async def sleep_until(self, moment: datetime, *, name: str | None = None) -> None:
        """Do not sleep."""

    @property
    def bulk(self) -> Any:
        """End the plan: bulk operations outside of a batch write."""
        raise PlanEnds("ctx.bulk outside of a loop writes, which a plan does not do")

    async def _has_selection(self) -> bool:
        return self._is_of_a_part

    def _plan(self, kind: str, source: Any, options: Mapping[str, Any]) -> PlannedLoop:
        return PlannedLoop(self._describe, kind, source, options)


def _sorting(options: Mapping[str, Any]) -> Any:
    """Return the options of a walk that is described although no index has its order."""
    return {**options, "allow_sort": True}
