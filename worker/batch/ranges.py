"""A walk that several hands share: one hand goes from range to range, each of which is walked as if it were a step.

The run itself is the first hand, its helper runs are the others. A helper ends when no range is free. The run waits at
the end for the ranges that others still walk, takes over those whose owner has died, and ends the step.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from sqlalchemy.ext.asyncio import AsyncConnection

from worker.batch.key_progress import WalkShare
from worker.batch.source import Source
from worker.batch.walk_host import Progress, WalkHost
from worker.errors import FencedOut, HandEnded, HandFailed, UnsupportedStatement, UsageError
from worker.ledger import OwnedRun, StepRecord
from worker.ledger.records import RangeBounds, RangeRecord, WalkState

OnHandError = Literal["stop", "continue"]

#: Ranges for each hand, so that a slow hand or a dense range does not hold the others up.
_RANGES_PER_HAND = 16
_MOST_HANDS = 100
#: Seconds between two looks at the ledger for the state of the walk.
_LOOK_SECONDS = 0.5
#: Seconds for which a helper has no lease until its ranges are taken over.
_MISSING_SECONDS = 1.0


@dataclass(frozen=True)
class Parallel:
    """The hands of a walk.

    Attributes:
        hands: The largest number of hands, with the run itself.
        on_error: Whether the walk stops if a hand fails for good, or ends all other ranges first.
    """

    hands: int
    on_error: OnHandError = "stop"

    @property
    def ranges(self) -> int:
        """The largest number of ranges that the walk is divided into."""
        return self.hands * _RANGES_PER_HAND


def read_parallel(kind: str, hands: Any, on_error: Any) -> Parallel | None:
    """Return the hands that the options of a loop ask for; None for one hand.

    Raises:
        UsageError: An option has an invalid value.
    """
    if on_error not in ("stop", "continue"):
        raise UsageError(f'{kind}: on_hand_error={on_error!r}: give "stop" or "continue"')
    if hands is None:
        return None
    if not isinstance(hands, int) or isinstance(hands, bool) or not 1 <= hands <= _MOST_HANDS:
        raise UsageError(
            f"{kind}: parallel={hands!r}: give the number of hands, from 1 to {_MOST_HANDS}; without parallel the run "
            f"walks alone"
        )
    return None if hands == 1 else Parallel(hands, on_error)


@runtime_checkable
class RangedSource(Protocol):
    """A source whose walk can be divided into ranges of its key."""

    async def split(self, connection: AsyncConnection, cursor: Any, count: int, size: int) -> list[RangeBounds]:
        """Return the ranges: all keys behind the cursor, up to the last one of the walk.

        Args:
            connection: The run's own connection.
            cursor: The key behind which the walk begins; None for the first key.
            count: The number of ranges, which only those of partitions may exceed.
            size: The number of rows that each range has at least.
        """

    def enter_range(self, last: list[Any], condition: str | None) -> None:
        """Let `fetch` return the keys of one range.

        Args:
            last: The last key.
            condition: A condition for keys, in SQL: that of the range's partition; None in a table without partitions.
        """


@runtime_checkable
class SnapshotSource(Protocol):
    """A source whose hands share one snapshot, while the transaction of the first hand is open."""

    async def export_snapshot(self) -> str | None:
        """Take the snapshot, and return its id for other hands; None if it cannot be shared."""

    def import_snapshot(self, snapshot: str | None) -> None:
        """Read in the snapshot of another hand."""


async def create_ranges(
    run: OwnedRun,
    source: Source[Any],
    step: StepRecord,
    parallel: Parallel | None,
    *,
    size: int,
    connection: AsyncConnection,
) -> None:
    """Divide what remains of a step into ranges, in the caller's transaction, unless it has ranges or one hand.

    Raises:
        UnsupportedStatement: The source cannot be divided.
        UsageError: Another run of the job, with the same arguments, walks the same table.
    """
    if parallel is None or run.spec.only is not None or run.spec.hand is not None or step.ranges or step.done:
        return
    if not isinstance(source, RangedSource):
        raise UnsupportedStatement(f"{source.kind}: parallel= needs a walk that can be divided by a key; this has none")
    await run.ranges.ensure_alone(step, run.spec)
    ranges = await source.split(connection, step.cursor, parallel.ranges, size)
    if len(ranges) > 1:
        await run.ranges.create(step.name, ranges)
        step.ranges = len(ranges)


class SharedWalk:
    """The ranges of a step, as one hand goes through them.

    Args:
        host: The attempt of the hand.
        run: Its run.
        source: The source of the walk.
        step: The step of the run whose walk it is.
        parallel: The hands; None for a run that finishes alone what it began with several hands.
        share: The share of the walk that is processed.

    Attributes:
        state: The state of the walk as last read; None before it was read.
    """

    def __init__(
        self,
        host: WalkHost,
        run: OwnedRun,
        source: RangedSource,
        step: StepRecord,
        parallel: Parallel | None,
        share: WalkShare,
    ) -> None:
        self._host = host
        self._run = run
        self._source = source
        self._step = step
        self._parallel = parallel or Parallel(1)
        self._share = share
        self._rows_before = step.rows
        self._rows_reported = -1
        self._looked_at = -_LOOK_SECONDS
        self._has_begun = False
        self._missing_since: dict[str, float] = {}  # when the lease of a helper was first found missing
        self.state: WalkState | None = None

    def measure(self) -> tuple[int, float | None, str]:
        """Return the rows that all hands have processed, those of others as last read, and the share of the ranges."""
        share = None if self.state is None else self.state.share
        return self._rows_before + self._run.ranges.rows, share, "ranges"

    async def watch(self) -> None:
        """Look at the ledger while this hand waits, so that the run shows the rows of the others in the meantime."""
        if time.monotonic() - self._looked_at >= _LOOK_SECONDS:
            await self._look()

    def _report(self) -> None:
        """Report what other hands have committed since the last look."""
        rows, share, by = self.measure()
        if rows == self._rows_reported:
            return
        self._rows_reported = rows
        step = self._step
        self._host.report(
            Progress(
                step=step.name,
                kind=step.kind,
                rows=rows,
                total=step.total,
                share=self._share.note(share, rows, step.total, by=by),
                is_estimate=self._share.is_estimate,
                share_by=self._share.by,
                batches=0,
                batch_size=0,
                batch_seconds=0.0,
                last_key=None,
                ranges=self.state,
            )
        )

    async def enter(self) -> StepRecord:
        """Return the range to walk: the current one, or the next that is free; the step itself after the last one.

        Raises:
            HandEnded: A helper has nothing more to do.
            HandFailed: A hand has failed for good.
            FencedOut: Another worker owns the run of this hand.
        """
        current = self._run.ranges.current
        if current is not None and not current.done and self._has_begun:
            if time.monotonic() - self._looked_at >= _LOOK_SECONDS:
                self._check(await self._look())
            return current
        while True:
            state = await self._look()
            self._check(state)
            found = await self._claim(state)
            if found is not None:
                return found
            if self._run.spec.hand is not None:
                raise HandEnded("no range is free")
            state = await self._look()
            if state.done + state.failed == state.ranges:
                return await self._finish(state)
            await self._run.ranges.release_dead(self._step.name, self._is_alive)
            await self._host.boundary(resumable=True, table=None)
            await self._host.hands.wait(state.ranges - state.done - state.failed)

    async def _is_alive(self, run_id: str) -> bool:
        """Return whether a worker has a helper: Redis may lose a lease, which its worker soon restores."""
        now = time.monotonic()
        if await self._host.hands.is_alive(run_id):
            self._missing_since.pop(run_id, None)
            return True
        return now - self._missing_since.setdefault(run_id, now) < _MISSING_SECONDS

    async def _claim(self, state: WalkState) -> RangeRecord | None:
        if not self._has_begun and isinstance(self._source, SnapshotSource):
            await self._share_snapshot(self._source)
        found = await self._run.ranges.claim(self._step)
        if found is not None:
            self._host.hands.end_wait()
            assert found.upper_bound is not None  # noqa: S101
            self._source.enter_range(found.upper_bound, found.condition)
        if not self._has_begun and self._run.spec.hand is None:
            free = state.ranges - state.done - state.failed
            hands = min(self._parallel.hands, free)
            await self._host.hands.start(self._step.name, hands, self._run.fence)
            self._host.hands.note(max(1, hands))  # until the next look shows how many have begun
            self._host.hands.watch(self.watch)
        self._has_begun = True
        return found

    async def _share_snapshot(self, source: SnapshotSource) -> None:
        if self._run.spec.hand is not None:
            source.import_snapshot((self._step.pace or {}).get("snapshot"))
        elif self._parallel.hands > 1:
            await self._run.ranges.store_snapshot(self._step.name, await source.export_snapshot())

    async def _look(self) -> WalkState:
        await self._run.roll_back()  # a transaction that was begun for the next batch would be idle
        async with self._run.driver.reading() as raw:
            state = await self._run.ranges.read(raw, self._step.name)
        self.state, self._looked_at = state, time.monotonic()
        self._host.hands.note(state.hands)
        if self._run.spec.hand is None:
            self._report()
        return state

    def _check(self, state: WalkState) -> None:
        if not state.is_owned:
            raise FencedOut(f"run {self._run.spec.id}")
        if self._run.spec.hand is not None:
            if not state.is_open:
                raise HandEnded("the walk has ended, or is paused")
        elif state.error is not None and self._parallel.on_error == "stop":
            raise HandFailed(self._describe(state.error))

    async def _finish(self, state: WalkState) -> StepRecord:
        """End the step in the ledger, unless a range has failed."""
        if state.failed:
            assert state.error is not None  # noqa: S101
            raise HandFailed(self._describe(state.error))
        self._host.hands.end_wait()
        await self._run.ranges.finish(self._step)
        return self._step

    def _describe(self, error: str) -> str:
        return (
            f"step {self._step.name!r}: a hand has failed for good: {error}. The ranges keep what was committed: "
            f"correct the cause, and continue with worker retry {self._run.spec.id}"
        )

    async def leave(self) -> None:
        """End the walk after `break`: in the run itself for all hands, in a helper for this hand alone.

        Raises:
            HandEnded: This hand is a helper.
        """
        if self._run.spec.hand is not None:
            raise HandEnded("the job has exited the loop")
        await self._run.ranges.finish(self._step)
