"""One attempt of one run, from its claim to its end: claim, take over, finish, release."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.cancellation import run_to_completion
from worker.db.driver import Driver
from worker.db.engine import Database
from worker.db.sessions import ScopedSession
from worker.errors import AlreadyFinished, FencedOut, LedgerDamaged, RunIdConflict
from worker.ledger.checkpoint import Checkpoints
from worker.ledger.frozen_sessions import terminating_blockers
from worker.ledger.quarantine import RunQuarantine
from worker.ledger.queries import query
from worker.ledger.ranges import Ranges
from worker.ledger.recorded_steps import RecordedSteps
from worker.ledger.records import RunSpec, StepRecord
from worker.ledger.run_connection import RunConnection, terminate_backend
from worker.ledger.text import shorten_traceback, storable

logger = logging.getLogger("longhaul.ledger")

#: Longest wait for a lock of the former owner before its connection is terminated.
_LOCK_WAIT_MS = 2_000
_LOCK_NOT_AVAILABLE = "55P03"
#: Samples of a step; with one more, half of them are joined with the next one.
MOST_SAMPLES = 500
_NO_PARENT = {"parent": None, "parent_fence": None}


@dataclass(frozen=True)
class Claim:
    """The result of claiming a run: a fence, and the state after earlier attempts."""

    fence: int
    attempt: int
    takeovers: int
    steps: dict[str, StepRecord]
    has_progressed: bool = False


class OwnedRun:
    """A run that this process owns until another one takes it over.

    The run keeps one pooled connection from its first loop to its end: prepared statements stay warm, and the ledger
    can name the backend that a successor has to terminate if this process freezes.

    Behind PgBouncer the ledger names no backend. There a backend serves one client after the other, so a successor
    cannot know whether it is still in the frozen worker's transaction or in that of another client. The transaction of
    a frozen
    worker then ends by `idle_in_transaction_session_timeout`, which each transaction sets, and the successor waits for
    that. If a worker has died, neither is needed: PgBouncer detects that its connection has ended, and closes the
    backend.

    Attributes:
        spec: Identity and payload of the run.
        attempt: Number of this attempt. It starts again at 1 after an attempt that committed a batch.
        takeovers: How often the run was taken over from an owner that had died.
        checkpoints: The steps, and the statements that record progress.
        recorded_steps: The steps without a cursor, of `ctx.step` and `ctx.sleep`.
        quarantine: The quarantine, for rows of this run.
        ranges: The ranges of walks that several hands share.
    """

    def __init__(
        self, database: Database, spec: RunSpec, claim: Claim, connection: RunConnection, code_version: str | None
    ) -> None:
        self._database = database
        self._connection = connection
        self._fence = claim.fence
        self.spec = spec
        self.attempt = claim.attempt
        self.takeovers = claim.takeovers
        hand = spec.hand
        walk_fence = claim.fence if hand is None else hand.fence
        self.ranges = Ranges(connection, (spec.root_id, walk_fence), (spec.id, claim.fence))
        self.checkpoints = Checkpoints(connection, spec.root_id, walk_fence, claim.steps, self.ranges, code_version)
        self.recorded_steps = RecordedSteps(spec.root_id, walk_fence, self.checkpoints, code_version)
        self.quarantine = RunQuarantine(connection, spec.root_id, spec.only, spec.only_rows)

    @property
    def fence(self) -> int:
        """Number of this claim."""
        return self._fence

    @property
    def steps(self) -> dict[str, StepRecord]:
        """The steps of the run, by name."""
        return self.checkpoints.steps

    @property
    def rows(self) -> int:
        """Rows done in all committed batches, including those of earlier attempts."""
        return self.checkpoints.rows

    @property
    def rows_of_attempt(self) -> int:
        """Rows that this attempt has committed."""
        return self.checkpoints.rows_of_attempt

    @property
    def has_progressed(self) -> bool:
        """Whether this attempt has committed a batch."""
        return self.checkpoints.batches > self.checkpoints.batches_before

    @property
    def connection(self) -> AsyncConnection:
        """The run's own connection."""
        return self._connection.connection

    @property
    def backend_pid(self) -> int | None:
        """The process id of the run's own connection.

        Raises:
            LonghaulError: The run has ended.
        """
        return self._connection.pid if self._connection.connection else None

    @property
    def driver(self) -> Driver:
        """The driver below the run's own connection."""
        return self._connection.driver

    def session(self, scope: str) -> ScopedSession:
        """Return a new session on the run's own connection. The loop that asked for it ends it."""
        return self._connection.session(scope)

    async def finish(
        self, state: str, *, result: str | None = None, error: str | None = None, trace: str | None = None
    ) -> None:
        """Record the end of the run.

        Args:
            state: succeeded, incomplete, dead or cancelled.
            result: The result as JSON.
            error: The error in one line.
            trace: The traceback, shown by `worker runs show`.

        Raises:
            FencedOut: Another worker owns the run.
        """
        values = {"state": state, "result": result, "error": storable(error), "traceback": shorten_traceback(trace)}
        is_migrated = state == "succeeded" and self.spec.is_once and self.spec.hand is None
        await self._update("finish_run", values | {"job": self.spec.job}, also="record_data_migration" * is_migrated)

    async def release(self, state: str, *, failed: bool, error: str | None = None, trace: str | None = None) -> int:
        """Give the run back to the queue.

        Args:
            state: waiting or paused.
            failed: Whether this attempt counts. An attempt that committed a batch never does.
            error: The error in one line.
            trace: The traceback.

        Returns:
            The number of the next attempt.

        Raises:
            FencedOut: Another worker owns the run.
        """
        values: dict[str, Any] = {"state": state, "attempt": self.attempt + failed}
        values |= {"batches_before": self.checkpoints.batches_before}
        values |= {"error": storable(error), "traceback": shorten_traceback(trace)}
        attempt: int = await self._update("release_run", values)
        return attempt

    async def _update(self, name: str, values: dict[str, Any], *, also: str = "") -> Any:
        # On another connection, because the run's own connection may have failed.
        async with self._database.connection() as connection:
            values |= {"id": self.spec.id, "fence": self._fence}
            if self._connection.is_lost and not self._database.pooled:
                row = (await connection.execute(query("find_run"), {"id": self.spec.id})).one_or_none()
                if row is not None and row.backend_pid == self._connection.pid:
                    await terminate_backend(connection, self.spec.id, row.backend_pid, row.backend_start)
            found = await connection.execute(query(name), values)
            if found.rowcount == 0:
                raise FencedOut(f"run {self.spec.id}")
            if also:
                await connection.execute(query(also), values)
            return found.scalar_one() if found.returns_rows else None

    async def store_pace(self, step: str, pace: dict[str, Any]) -> None:
        """Store the pace of a step after a batch has failed. A run that another worker owns stays as it is."""
        async with self._database.connection() as connection:
            values = {"run_id": self.spec.root_id, "step": step, "fence": self._fence, "pace": json.dumps(pace)}
            if (current := self.ranges.current) is not None:
                values |= {"number": current.number, "fence": current.fence}
            await connection.execute(query("store_pace" if current is None else "store_range_pace"), values)

    async def find_selection(self) -> tuple[str | None, list[Any] | None] | None:
        """Return the SQL expression and the first key that an operator has selected; None for the whole walk.

        Raises:
            LedgerDamaged: The run was enqueued for a part, and the ledger has lost it.
        """
        if not self.spec.is_selected:
            return None
        async with self._database.connection() as connection:
            found = (await connection.execute(query("find_selection"), {"run_id": self.spec.root_id})).one_or_none()
        if found is None:
            raise LedgerDamaged(
                f"run {self.spec.root_id} was enqueued for a part of its walks, and the ledger has lost which: enqueue "
                f"it again under another id, with --subset or --from"
            )
        return found.subset, found.first

    async def add_sample(self, step: str, seconds: dict[str, float]) -> None:
        """Add a sample of a step, with the seconds since the one before by their reason."""
        async with self._database.connection() as connection:
            values: dict[str, Any] = {"run_id": self.spec.id, "step": step, "most": MOST_SAMPLES}
            added = {"attempt": self.attempt, "seconds": json.dumps(seconds)}
            await connection.execute(query("insert_sample"), values | added)
            await connection.execute(query("thin_samples"), values)

    async def roll_back(self) -> None:
        """Roll back the transaction of the run's own connection, if one is open."""
        await self._connection.roll_back()

    async def close(self, *, discard: bool = False) -> None:
        """Return the run's connection to the pool, and roll back its transaction.

        Args:
            discard: Close the connection instead, because abandoned code may still use it.
        """
        await self._connection.close(discard=discard)


async def claim_run(database: Database, spec: RunSpec, owner: str, code_version: str | None = None) -> OwnedRun:
    """Claim a run: a new run, a released run, or a run whose owner has died.

    Raises:
        AlreadyFinished: The run has ended, and its payload is the same.
        RunIdConflict: The ledger has an unfinished run of another job, or with other arguments, under this id.
        LedgerDamaged: The run had begun, and its row or some of its steps are gone.
    """
    connection = await database.engine.connect()
    own = RunConnection(spec.id, connection)
    may_be_named = False  # whether the ledger may name this session as the run's own
    try:
        try:
            await connection.execute(text(f"SET LOCAL lock_timeout = {_LOCK_WAIT_MS}"))
            claim = await _claim(database, connection, spec, owner)
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                raise
            # The former owner is frozen, and holds a lock on the run: terminate it without waiting for that lock.
            await run_to_completion(connection.rollback())
            row = (await connection.execute(query("find_run"), {"id": spec.id})).one_or_none()
            if row is not None:
                await terminate_backend(connection, spec.id, row.backend_pid, row.backend_start)
            await connection.execute(text("SET LOCAL lock_timeout = 0"))
            own_pid = int(await connection.scalar(text("SELECT pg_catalog.pg_backend_pid()")) or 0)
            async with terminating_blockers(database, spec.id, own_pid, _LOCK_WAIT_MS / 1000):
                claim = await _claim(database, connection, spec, owner)
        may_be_named = True
        await run_to_completion(connection.commit())
        await own.attach_driver()
    except BaseException:
        # A successor would terminate the session: another run must not get it.
        await own.close(discard=may_be_named)
        raise
    return OwnedRun(database, spec, claim, own, code_version)


async def _claim(database: Database, connection: AsyncConnection, spec: RunSpec, owner: str) -> Claim:
    """Set a new fence on the run and its steps, and record the owner. The caller commits."""
    values: dict[str, Any] = {"id": spec.id, "job": spec.job, "queue": spec.queue, "owner": owner}
    values |= {"payload": spec.payload, "arguments": spec.arguments, "is_pooled": database.pooled}
    values |= {"parent": spec.hand.run_id, "parent_fence": spec.hand.fence} if spec.hand else _NO_PARENT
    run = (await connection.execute(query("claim_run"), values)).one_or_none()
    if run is not None and run.is_new and not spec.in_ledger and spec.hand is None:
        return Claim(run.fence, run.attempt, run.takeovers, steps={})
    if run is None:
        known = (await connection.execute(query("find_run"), {"id": spec.id})).one()
        if not known.finished:
            raise RunIdConflict(spec.id, known.job, known.arguments, spec.job, spec.arguments)
        if known.payload == spec.payload and not spec.is_new:
            raise AlreadyFinished(known.state, known.result, known.error)
        run = (await connection.execute(query("restart_finished_run"), values)).one()
    owner_died = run.state_before == "running" and not run.is_new
    if owner_died and run.backend_pid is not None:
        await terminate_backend(connection, spec.id, run.backend_pid, run.backend_start)
    has_progressed = run.has_ranges and await _release_ranges(connection, spec.id, run.fence)
    steps = await _read_steps(connection, spec, run.fence)
    if len(steps) < run.steps or (run.is_new and spec.in_ledger):
        what = "the row" if run.is_new else f"{run.steps - len(steps)} of the {run.steps} steps"
        raise LedgerDamaged(
            f"the ledger has lost {what} of run {spec.id}, which had begun: it was deleted, or the database was "
            f"restored. Some of its work may be done. To do all of it again, enqueue the job under another id"
        )
    batches, attempt = 0 if spec.hand else sum(step.batches for step in steps.values()), run.attempt
    if owner_died:
        attempt = 1 if has_progressed or batches > run.batches_before else run.attempt + 1
    claim = Claim(run.fence, attempt, run.takeovers + owner_died, steps)
    owned = {"id": spec.id, "fence": claim.fence, "attempt": claim.attempt, "batches": batches}
    owned |= {"takeovers": claim.takeovers, "is_pooled": database.pooled}
    await connection.execute(query("record_owner"), owned)
    return claim


async def _release_ranges(connection: AsyncConnection, run_id: str, fence: int) -> bool:
    """Release the ranges of the former owner. Return whether it has committed a batch in one of them."""
    released = (await connection.execute(query("release_ranges"), {"id": run_id})).scalars().all()
    progress = await connection.scalar(query("read_range_progress"), {"id": run_id, "fence": fence - 1})
    return any(released) or bool(progress)


async def _read_steps(connection: AsyncConnection, spec: RunSpec, fence: int) -> dict[str, StepRecord]:
    """Set the new fence on the steps of a run, and return them; those of its parent for a helper run."""
    try:
        if spec.hand is None:
            rows = await connection.execute(query("claim_steps"), {"id": spec.id, "fence": fence})
        else:  # none if the parent has begun another attempt, and the helper ends
            rows = await connection.execute(query("reload_steps"), {"id": spec.hand.run_id, "fence": spec.hand.fence})
        return {row.name: StepRecord(**row._mapping) for row in rows if row.name is not None}
    except RecursionError:
        raise LedgerDamaged(
            f"a step of run {spec.id} has a value in worker.step that is nested too deeply to be read: the ledger was "
            f"changed by hand. Restore it, or enqueue the job under another id"
        ) from None
