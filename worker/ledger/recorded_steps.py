"""Steps without a cursor: the results of `ctx.step`, and the ends of `ctx.sleep`, recorded under the fence."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from worker.errors import FencedOut
from worker.ledger.checkpoint import Checkpoints
from worker.ledger.queries import source
from worker.ledger.records import StepRecord

#: The kinds of steps that are recorded once, and have no cursor.
KINDS = ("step", "sleep")


class RecordedSteps:
    """The recorded steps of a run that this process owns under a fence.

    The methods take asyncpg's connection, in a transaction or without one.

    Args:
        run_id: Id of the run.
        fence: Number of this claim.
        checkpoints: The steps of the run, to which new ones are added.
        code_version: Version of the jobs' code, recorded with the steps.
    """

    def __init__(self, run_id: str, fence: int, checkpoints: Checkpoints, code_version: str | None) -> None:
        self._run_id = run_id
        self._fence = fence
        self._checkpoints = checkpoints
        self._code_version = code_version

    @property
    def in_order(self) -> list[StepRecord]:
        """The steps that have begun, in their order."""
        found = [step for step in self._checkpoints.steps.values() if step.kind in KINDS]
        return sorted(found, key=lambda step: step.position)

    async def begin(self, raw: Any, name: str, *, function: str) -> None:
        """Record that the function of a step begins.

        Args:
            raw: asyncpg's connection.
            name: Name of the step.
            function: Module and qualified name of its function, for the operator.

        Raises:
            FencedOut: Another worker owns the run.
        """
        known = self._checkpoints.steps.get(name)
        position = len(self._checkpoints.steps) + 1 if known is None else known.position
        values = (position, name, function, self._code_version, int(known is None))
        if await raw.fetchrow(source("begin_step"), self._run_id, self._fence, *values) is None:
            raise FencedOut(f"run {self._run_id}")
        self._add(name, position, "step", done=False)

    async def finish(self, raw: Any, name: str, *, result: str) -> None:
        """Record the result of a step, as JSON. After COMMIT, the caller calls `note_finished`.

        Raises:
            FencedOut: Another worker owns the run.
        """
        if await raw.execute(source("finish_step"), self._run_id, self._fence, name, result) != "UPDATE 1":
            raise FencedOut(f"run {self._run_id}")

    def note_finished(self, name: str) -> None:
        """Note that the result of a step is committed."""
        step = self._checkpoints.steps[name]
        step.done, step.batches = True, 1

    async def record_sleep(self, raw: Any, name: str, *, until: datetime | None, seconds: float) -> float:
        """Record when a sleep ends, by PostgreSQL's clock. Return the seconds until then.

        Args:
            raw: asyncpg's connection.
            name: Name of the step.
            until: The end; None if `seconds` count.
            seconds: Seconds from now.

        Raises:
            FencedOut: Another worker owns the run.
        """
        position = len(self._checkpoints.steps) + 1
        values = (position, name, until, seconds, self._code_version)
        row = await raw.fetchrow(source("record_sleep"), self._run_id, self._fence, *values)
        if row is None:
            raise FencedOut(f"run {self._run_id}")
        self._add(name, position, "sleep", done=row["seconds"] <= 0)
        return float(row["seconds"])

    async def read_sleep(self, raw: Any, step: StepRecord) -> float:
        """Return the seconds that a recorded sleep still lasts. End the step if it is over.

        Raises:
            FencedOut: Another worker owns the run.
        """
        row = await raw.fetchrow(source("read_sleep"), self._run_id, self._fence, step.name)
        if row is None:
            raise FencedOut(f"run {self._run_id}")
        step.done = row["seconds"] <= 0
        return float(row["seconds"])

    async def read_result(self, raw: Any, name: str, *, run_id: str | None = None) -> str | None:
        """Return the result of a recorded step as JSON; None if there is no such step.

        Args:
            raw: asyncpg's connection.
            name: Name of the step.
            run_id: The run; None for this one.
        """
        row = await raw.fetchrow(source("read_step_result"), run_id or self._run_id, name)
        return None if row is None else str(row["result"])

    def _add(self, name: str, position: int, kind: str, *, done: bool) -> None:
        batches = int(kind == "sleep")
        step = StepRecord(name, position, kind, "", [], None, None, 0, batches, None, done)
        step.code_version = self._code_version
        self._checkpoints.steps[name] = step
