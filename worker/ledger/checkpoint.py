"""Steps, cursors and the fence: how far a run has come, and the statement that records it."""

from __future__ import annotations

import json
import logging
from typing import Any

from worker.cancellation import run_to_completion
from worker.errors import CursorMismatch, FencedOut, LedgerDamaged, RangeLost
from worker.ledger.queries import query, source
from worker.ledger.ranges import Ranges
from worker.ledger.records import RangeRecord, StepRecord, StepSpec
from worker.ledger.run_connection import RunConnection

logger = logging.getLogger("longhaul.ledger")

#: In place of a step's statement: any statement of the next attempt is accepted.
ACCEPT_ANY = ""
_CHECKPOINT = source("checkpoint")
_CHECKPOINT_RANGE = source("checkpoint_range")


class Checkpoints:
    """The steps of a run that this process owns under a fence.

    Args:
        connection: The run's own connection.
        run_id: Id of the run.
        fence: Number of this claim. A statement with an older fence matches no row.
        steps: The steps that earlier attempts began, by name.
        ranges: The ranges of walks that several hands share.
        code_version: Version of the jobs' code, recorded with the steps that it begins.

    Attributes:
        steps: The steps of the run, by name.
        batches_before: Batches that earlier attempts have committed.
        rows_before: Rows that earlier attempts have committed.
    """

    def __init__(
        self,
        connection: RunConnection,
        run_id: str,
        fence: int,
        steps: dict[str, StepRecord],
        ranges: Ranges,
        code_version: str | None = None,
    ) -> None:
        self._connection = connection
        self._run_id = run_id
        self._fence = fence
        self._code_version = code_version
        self._ranges = ranges
        self.steps = steps
        self.batches_before = self.batches
        self.rows_before = self.rows

    @property
    def rows(self) -> int:
        """Rows done in all committed batches of all steps, including those of earlier attempts."""
        return sum(step.rows for step in self.steps.values()) + self._ranges.rows

    @property
    def batches(self) -> int:
        """Committed batches of all steps, including those of earlier attempts; not those of other hands."""
        return sum(step.batches for step in self.steps.values()) + self._ranges.own_batches

    @property
    def rows_of_attempt(self) -> int:
        """Rows that this attempt has committed; not those of other hands."""
        steps = sum(step.rows for step in self.steps.values())
        return steps - self.rows_before + self._ranges.own_rows

    def find_segment(self, name: str) -> StepRecord | None:
        """Return the range of a step that this hand walks, or the step itself; None if the run has no such step."""
        current = self._ranges.current
        return current if current is not None and current.name == name else self.steps.get(name)

    def rows_of(self, step: StepRecord) -> int:
        """Return the rows of a step; of a range, those of its whole walk over all hands."""
        return self.steps[step.name].rows + self._ranges.rows if isinstance(step, RangeRecord) else step.rows

    async def open_step(
        self, spec: StepSpec, *, upper_bound: list[Any] | None, total: int | None, done: bool = False
    ) -> StepRecord:
        """Insert a step in the caller's transaction.

        Raises:
            FencedOut: Another worker owns the run.
        """
        position = len(self.steps) + 1
        values = {
            "run_id": self._run_id,
            "fence": self._fence,
            "position": position,
            "name": spec.name,
            "kind": spec.kind,
            "statement": spec.statement,
            "key": json.dumps(spec.key or []),
            "upper_bound": None if upper_bound is None else json.dumps(upper_bound),
            "total": total,
            "done": done,
            "code_version": self._code_version,
        }
        if (await self._connection.connection.execute(query("open_step"), values)).one_or_none() is None:
            raise FencedOut(f"run {self._run_id}")
        step = StepRecord(
            spec.name,
            position,
            spec.kind,
            spec.statement,
            spec.key or [],
            None,
            upper_bound,
            0,
            0,
            total,
            done,
            code_version=self._code_version,
        )
        self.steps[spec.name] = step
        return step

    def find_step(self, spec: StepSpec, *, accepts_change: bool = False) -> StepRecord | None:
        """Return the step that an earlier attempt began, or None.

        Args:
            spec: Description of the current walk.
            accepts_change: Accept another statement over the same key.

        Raises:
            CursorMismatch: The step belongs to another walk, e.g. the walk of the code before a deploy.
            LedgerDamaged: The step has no upper bound.
        """
        step = self.steps.get(spec.name)
        if step is None or (step.done and spec.named and step.kind not in ("step", "sleep")):
            return step
        if step.kind in ("chunks", "sweep") and not step.done and step.upper_bound is None:
            raise LedgerDamaged(
                f"step {spec.name!r} of run {self._run_id} has lost its upper bound: the ledger was changed by hand. "
                f"To do all rows again: worker retry {self._run_id} --from-start"
            )
        key = step.key if spec.key is None else spec.key
        is_same_walk = (step.kind, step.key) == (spec.kind, key)
        if is_same_walk and (accepts_change or step.statement in (spec.statement, ACCEPT_ANY)):
            return step
        where = "is the end" if step.done else f"is at {step.cursor}"
        raise CursorMismatch(
            f"step {spec.name!r} of run {self._run_id} {where} of another walk:\n"
            f"  in the ledger: {step.kind} by {_describe_key(step.key)}: {step.statement}\n"
            f"  in the code:   {spec.kind} by {_describe_key(key)}: {spec.statement}\n"
            f"Deploy the old code again, or start over: worker retry {self._run_id} --from-start"
            + (f", or continue with the new statement: worker retry {self._run_id} --accept-statement" * is_same_walk),
            code_version=step.code_version,
        )

    async def accept_statement(self, step: StepRecord, statement: str) -> None:
        """Record that a step continues with another statement, in the caller's transaction.

        Raises:
            FencedOut: Another worker owns the run.
        """
        values = {"run_id": self._run_id, "name": step.name, "fence": self._fence, "statement": statement}
        values["code_version"] = self._code_version
        if (await self._connection.connection.execute(query("accept_statement"), values)).rowcount == 0:
            raise FencedOut(f"run {self._run_id}")
        logger.warning(
            "continuing with another statement run=%s step=%s cursor=%s", self._run_id, step.name, step.cursor
        )
        step.statement, step.code_version = statement, self._code_version

    async def reload(self) -> None:
        """Read the steps again, after an error that leaves it unknown whether a COMMIT took effect.

        On the run's own connection the result is certain: the server completes one message before it reads the next.

        Raises:
            FencedOut: Another worker owns the run.
        """
        connection = self._connection.connection
        await run_to_completion(connection.rollback())  # a COMMIT that failed leaves SQLAlchemy's transaction open
        if self._ranges.current is not None:
            await self._ranges.reload()
            return
        rows = (await connection.execute(query("reload_steps"), {"id": self._run_id, "fence": self._fence})).all()
        await run_to_completion(connection.rollback())
        if not rows:
            raise FencedOut(f"run {self._run_id}")
        self.steps = {row.name: StepRecord(**row._mapping) for row in rows if row.name is not None}

    async def restart_step(self, step: StepRecord) -> None:
        """Reset a step to its first row, in the caller's transaction.

        Raises:
            FencedOut: Another worker owns the run.
        """
        values = {"run_id": self._run_id, "name": step.name, "fence": self._fence}
        if (await self._connection.connection.execute(query("restart_step"), values)).rowcount == 0:
            raise FencedOut(f"run {self._run_id}")
        self.batches_before -= step.batches
        self.rows_before -= step.rows
        step.cursor, step.rows, step.batches = None, 0, 0

    async def move(
        self,
        raw: Any,
        step: StepRecord,
        *,
        cursor: Any,
        rows: int,
        done: bool,
        batches: int = 1,
        pace: dict[str, Any] | None = None,
    ) -> None:
        """Move the cursor of a step, in the batch's transaction that `raw` has open.

        Args:
            raw: asyncpg's connection.
            step: The step.
            cursor: The position behind the last processed row, as a JSON value; None keeps the cursor.
            rows: Rows processed in this batch.
            done: Whether the step has ended.
            batches: Number of batches to add.
            pace: The pace of the step, as JSON values; None keeps it.

        Raises:
            FencedOut: Another worker owns the run.
            RangeLost: Another hand has the range.
        """
        written = None if cursor is None else json.dumps(cursor)
        paced = None if pace is None else json.dumps(pace)
        if isinstance(step, RangeRecord):
            where = (self._run_id, step.name, step.fence, batches, paced, step.number)
            if await raw.execute(_CHECKPOINT_RANGE, written, rows, done, *where) != "UPDATE 1":
                raise RangeLost(f"range {step.number} of step {step.name!r} of run {self._run_id}")
            return
        status = await raw.execute(
            _CHECKPOINT, written, rows, done, self._run_id, step.name, self._fence, batches, paced
        )
        if status != "UPDATE 1":
            raise FencedOut(f"run {self._run_id}")

    async def add_skipped(self, raw: Any, step: str, keys: list[list[Any]]) -> None:
        """Record the keys of rows that other sessions have locked, in the transaction that `raw` has open."""
        await raw.execute(source("insert_skipped"), self._run_id, step, [json.dumps(key) for key in keys])

    async def list_skipped(self, raw: Any, step: str, limit: int) -> dict[int, list[Any]]:
        """Return the keys of skipped rows, by the ids that `delete_skipped` takes."""
        rows = await raw.fetch(source("list_skipped"), self._run_id, step, limit)
        return {row["id"]: json.loads(row["key"]) for row in rows}

    async def delete_skipped(self, raw: Any, ids: list[int]) -> None:
        """Delete skipped rows, in the transaction that `raw` has open."""
        await raw.execute(source("delete_skipped"), ids)


def _describe_key(key: list[list[str]]) -> str:
    return ", ".join(f"{column} {type_} {direction}" for column, type_, direction in key) or "no key"
