"""The ranges of a walk that several hands share: each has a cursor, an owner and a fence of its own in the ledger.

A hand is the run itself or one of its helper runs. It owns a range under two numbers. The fence of its run decides
whether this process may still claim; the fence of the range decides whether it may still commit there.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import astuple
from typing import Any

from worker.cancellation import run_to_completion
from worker.db.sessions import roll_back
from worker.errors import FencedOut, UsageError
from worker.ledger.queries import query, source
from worker.ledger.records import RangeBounds, RangeRecord, RunSpec, StepRecord, WalkState
from worker.ledger.run_connection import RunConnection, terminate_backend


class Ranges:
    """The ranges of the walks of one run, as one of its hands uses them.

    Args:
        connection: The hand's own connection.
        run: Id and fence of the run whose walk it is.
        hand: Id and fence of the hand's own run: the same for the run itself.

    Attributes:
        current: The range that this hand walks; None while it has none.
    """

    def __init__(self, connection: RunConnection, run: tuple[str, int], hand: tuple[str, int]) -> None:
        self._connection = connection
        self._run_id, self._fence = run
        self._hand, self._hand_fence = hand
        self._others = (0, 0)  # rows and batches of all ranges but the current one, when they were last read
        self._own = (0, 0)  # rows and batches of this process, but for the current range
        self._claimed = (0, 0)  # rows and batches of the current range when it was claimed
        self._folded = (0, 0)  # rows and batches that `finish` has added to steps
        self.current: RangeRecord | None = None

    @property
    def rows(self) -> int:
        """Rows of all ranges of the walk: those of other hands as last read."""
        return self._others[0] + (self.current.rows if self.current else 0)

    @property
    def own_rows(self) -> int:
        """Rows that this process has committed in ranges, less those that `finish` has added to steps."""
        return self._own[0] + (self.current.rows - self._claimed[0] if self.current else 0) - self._folded[0]

    @property
    def own_batches(self) -> int:
        """Batches that this process has committed in ranges, less those that `finish` has added to steps."""
        return self._own[1] + (self.current.batches - self._claimed[1] if self.current else 0) - self._folded[1]

    async def ensure_alone(self, step: StepRecord, spec: RunSpec) -> None:
        """Check that no other run walks the same rows, in the caller's transaction, until which others wait.

        Raises:
            UsageError: An unfinished run of the job, with the same arguments, walks a table by the same key.
        """
        if spec.may_overlap:
            return
        connection = self._connection.connection
        call = {"job": spec.job, "arguments": spec.arguments}
        await connection.execute(query("lock_call"), {"call": json.dumps(call)})
        values = {**call, "run_id": self._run_id, "kind": step.kind, "key": json.dumps(step.key)}
        other = (await connection.execute(query("find_overlap"), values)).scalar()
        if other is not None:
            raise UsageError(
                f"step {step.name!r} of run {self._run_id}: run {other} of {spec.job} with the same arguments walks "
                f"the same table, and has not ended. Wait for it, cancel it, or allow it by @job(overlap=True)"
            )

    async def create(self, step: str, bounds: Sequence[RangeBounds]) -> None:
        """Insert the ranges of a step, in the caller's transaction.

        Args:
            step: Name of the step.
            bounds: The keys of each range.

        Raises:
            FencedOut: Another worker owns the run.
        """
        given = json.dumps([astuple(each) for each in bounds])
        values = {"run_id": self._run_id, "step": step, "fence": self._fence, "bounds": given}
        if (await self._connection.connection.execute(query("insert_ranges"), values)).rowcount != len(bounds):
            raise FencedOut(f"run {self._run_id}")

    async def store_snapshot(self, step: str, snapshot: str | None) -> None:
        """Store the id of the snapshot that the hands of a walk share; None for none."""
        await self._in_transaction("store_snapshot", step, {"snapshot": snapshot})

    async def claim(self, step: StepRecord) -> RangeRecord | None:
        """Claim the next free range, or the one that this hand already has. Return None if none is free."""
        self.leave()
        values = {"hand": self._hand, "hand_fence": self._hand_fence}
        found = await self._in_transaction("claim_range", step.name, values)
        if not found:
            return None
        row = found[0]
        self.current = RangeRecord(
            step.name,
            step.position,
            step.kind,
            step.statement,
            step.key,
            row.cursor or row.lower,
            row.upper,
            row.rows,
            row.batches,
            step.total,
            row.done,
            pace=row.pace or step.pace,
            code_version=step.code_version,
            number=row.number,
            lower=row.lower,
            fence=row.fence,
            condition=row.condition,
        )
        self._claimed = (row.rows, row.batches)
        rows, batches = self._others
        self._others = (rows - row.rows, batches - row.batches)  # they are counted in the current range
        return self.current

    def leave(self) -> None:
        """Forget the current range; its rows count among the others."""
        own, current = (self.own_rows + self._folded[0], self.own_batches + self._folded[1]), self.current
        self._own, self.current = own, None
        if current is not None:
            rows, batches = self._others
            self._others = (rows + current.rows, batches + current.batches)

    async def reload(self) -> None:
        """Read the current range again; forget it if another hand has it."""
        current = self.current
        assert current is not None  # noqa: S101
        values = {"number": current.number, "fence": current.fence}
        found = await self._in_transaction("reload_range", current.name, values)
        if not found:
            self.current = None
            return
        row = found[0]
        current.cursor, current.rows, current.batches = row.cursor or current.lower, row.rows, row.batches
        current.done, current.pace = row.done, row.pace

    async def read(self, raw: Any, step: str) -> WalkState:
        """Return the state of the walk.

        Args:
            raw: asyncpg's connection.
            step: Name of the step.
        """
        values = (self._run_id, self._fence, step, self._hand, self._hand_fence)
        row = await raw.fetchrow(source("read_walk"), *values)
        state = WalkState(**dict(row))
        current = self.current
        self._others = (
            state.rows - (current.rows if current else 0),
            state.batches - (current.batches if current else 0),
        )
        return state

    async def release_dead(self, step: str, is_alive: Callable[[str], Awaitable[bool]]) -> int:
        """Release the ranges whose owners have died, and terminate the connections of those that may be frozen.

        Args:
            step: Name of the step.
            is_alive: Returns whether a worker holds the lease of a run.

        Returns:
            The number of ranges that are free now.
        """
        released = 0
        for row in await self._in_transaction("list_range_owners", step, {"hand": self._hand}):
            if row.is_running and await is_alive(row.owner):
                continue
            connection = self._connection.connection
            if row.is_running and row.backend_pid is not None:
                await terminate_backend(connection, row.owner, row.backend_pid, row.backend_start)
            values = {"number": row.number, "owner": row.owner, "owner_fence": row.owner_fence}
            released += len(await self._in_transaction("release_range", step, values))
        return released

    async def finish(self, step: StepRecord) -> None:
        """End a step, and add the sums of its ranges to it.

        Raises:
            FencedOut: Another worker owns the run.
        """
        self.leave()
        await self._in_transaction("stop_ranges", step.name, {}, commit=False)
        found = await self._in_transaction("finish_ranges", step.name, {"fence": self._fence})
        if not found:
            raise FencedOut(f"run {self._run_id}")
        rows, batches = self._folded
        self._folded = (rows + found[0].rows - step.rows, batches + found[0].batches - step.batches)
        step.rows, step.batches, step.done = found[0].rows, found[0].batches, True
        self._others = (0, 0)

    async def _in_transaction(self, name: str, step: str, values: dict[str, Any], *, commit: bool = True) -> list[Any]:
        """Run a statement on the hand's own connection, and commit it. Return its rows."""
        connection = self._connection.connection
        given = {"run_id": self._run_id, "step": step, "fence": self._fence} | values
        statement = query(name)
        try:
            result = await connection.execute(statement, {key: given[key] for key in statement._bindparams})
            rows = list(result.all()) if result.returns_rows else []
            if commit:
                await run_to_completion(connection.commit())
        except BaseException:
            await run_to_completion(roll_back(connection.rollback()))
            raise
        return rows
