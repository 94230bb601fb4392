"""One try of one run: its fence, its steps, and the connection that it works on."""

from __future__ import annotations

import json
import logging
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.db.engine import Database
from worker.db.scopes import ScopedSession, settle
from worker.errors import AlreadyFinished, CursorMismatch, LonghaulError, RunIdTaken, Superseded
from worker.ledger.queries import query, source
from worker.ledger.record import RunSpec, StepRecord, StepSpec

logger = logging.getLogger("worker.ledger")

_SHOWN_TRACEBACK = 8_000


class LedgerRun:
    """A run that this process owns, until its fence says otherwise.

    It keeps one connection of the pool from its first loop to its end: its prepared statements stay warm, and
    the ledger can name the backend that a successor has to end if this process freezes.
    """

    def __init__(self, database: Database, spec: RunSpec, owner: str) -> None:
        self._database = database
        self._owner = owner
        self._connection: AsyncConnection | None = None
        self._fence = 0
        self._checkpoint = source("checkpoint")
        self.spec = spec
        self.attempt = 1
        self.takeovers = 0
        self.batches_before = 0
        self.steps: dict[str, StepRecord] = {}

    @property
    def rows(self) -> int:
        """Rows done in all committed batches of all steps, of earlier tries too."""
        return sum(step.rows for step in self.steps.values())

    @property
    def batches(self) -> int:
        """Committed batches of all steps."""
        return sum(step.batches for step in self.steps.values())

    @property
    def progressed(self) -> bool:
        """Whether this try has committed a batch."""
        return self.batches > self.batches_before

    @property
    def connection(self) -> AsyncConnection:
        """The run's own connection."""
        if self._connection is None:
            raise LonghaulError("the run has ended: its loops cannot be used any more")
        return self._connection

    def session(self, scope: str) -> ScopedSession:
        """Return a new session on the run's own connection; the loop that asked for it ends it."""
        session = ScopedSession(bind=self.connection, expire_on_commit=False)
        session.bind_to_scope(scope)
        return session

    async def begin(self) -> None:
        """Take the run: as a new one, after it was handed back, or from an owner that has died.

        Raises:
            AlreadyFinished: the ledger has its end.
            RunIdTaken: the ledger has another job under its id.
        """
        self._connection = await self._database.engine.connect()
        try:
            await self._take(self._connection)
            await settle(self._connection.commit())
        except BaseException:
            await self.release()
            raise

    async def _take(self, connection: AsyncConnection) -> None:
        values = {"id": self.spec.id, "job": self.spec.job, "queue": self.spec.queue}
        values |= {"payload": self.spec.payload, "owner": self._owner}
        taken = (await connection.execute(query("begin_run"), values)).one_or_none()
        if taken is None:
            raise await self._not_ours(connection)
        died = taken.state_before == "running" and not taken.is_new
        if died and taken.backend_pid is not None:
            await self._terminate(connection, taken.backend_pid, taken.backend_start)
        rows = await connection.execute(query("take_steps"), {"id": self.spec.id, "fence": taken.fence})
        self.steps = {row.name: StepRecord(**row._mapping) for row in rows}
        self._fence = taken.fence
        self.takeovers = taken.takeovers + died
        self.attempt = taken.attempt
        if died:
            self.attempt = 1 if self.batches > taken.batches_before else taken.attempt + 1
        self.batches_before = self.batches
        await connection.execute(
            query("own_run"),
            {
                "id": self.spec.id,
                "fence": self._fence,
                "attempt": self.attempt,
                "batches": self.batches,
                "takeovers": self.takeovers,
                "backend_pid": await connection.scalar(text("SELECT pg_backend_pid()")),
            },
        )

    async def _not_ours(self, connection: AsyncConnection) -> AlreadyFinished | RunIdTaken:
        row = (await connection.execute(query("find_run"), {"id": self.spec.id})).one()
        if row.job != self.spec.job:
            return RunIdTaken(self.spec.id, row.job, self.spec.job)
        return AlreadyFinished(row.state, row.result, row.error)

    async def _terminate(self, connection: AsyncConnection, pid: int, started: object) -> None:
        """End the former owner's backend; a role that may not do so relies on the idle timeout."""
        try:
            async with connection.begin_nested():
                ended = await connection.scalar(query("terminate_backend"), {"pid": pid, "started": started})
        except DBAPIError as error:
            logger.warning("run %s: cannot end the former owner's connection: %s", self.spec.id, error.orig)
            return
        if ended:
            logger.warning("run %s: ended connection %s of its former owner", self.spec.id, pid)

    async def open_step(
        self, spec: StepSpec, *, upper_bound: list[Any] | None, total: int | None, done: bool = False
    ) -> StepRecord:
        """Write a new step down. Its transaction is the caller's, who commits.

        Raises:
            Superseded: another worker has the run.
        """
        position = len(self.steps) + 1
        values = {
            "run_id": self.spec.id,
            "fence": self._fence,
            "position": position,
            "name": spec.name,
            "kind": spec.kind,
            "statement": spec.statement,
            "key": json.dumps(spec.key),
            "upper_bound": None if upper_bound is None else json.dumps(upper_bound),
            "total": total,
            "done": done,
        }
        if (await self.connection.execute(query("open_step"), values)).one_or_none() is None:
            raise Superseded(self.spec.id)
        step = StepRecord(
            spec.name, position, spec.kind, spec.statement, spec.key, None, upper_bound, 0, 0, total, done
        )
        self.steps[spec.name] = step
        return step

    def known_step(self, spec: StepSpec) -> StepRecord | None:
        """Return the step that an earlier try began, or None.

        Raises:
            CursorMismatch: it belongs to another statement, e.g. that of the code before a deploy.
        """
        step = self.steps.get(spec.name)
        if step is None or step.done:
            return step
        if (step.kind, step.key, step.statement) != (spec.kind, spec.key, spec.statement):
            raise CursorMismatch(
                f"step {spec.name!r} of run {self.spec.id} stands at {step.cursor} of another walk:\n"
                f"  in the ledger: {step.kind} by {_shown(step.key)}: {step.statement}\n"
                f"  in the code:   {spec.kind} by {_shown(spec.key)}: {spec.statement}\n"
                f"Bring the old code back, or begin again: worker retry {self.spec.id} --from-start"
            )
        return step

    async def restart_step(self, step: StepRecord) -> None:
        """Begin a step from its first row again."""
        values = {"run_id": self.spec.id, "name": step.name, "fence": self._fence}
        if (await self.connection.execute(query("restart_step"), values)).rowcount == 0:
            raise Superseded(self.spec.id)
        step.cursor, step.rows = None, 0

    async def checkpoint(
        self,
        connection: AsyncConnection,
        step: StepRecord,
        *,
        cursor: list[Any] | None,
        rows: int,
        done: bool,
        batches: int = 1,
    ) -> None:
        """Move the cursor, in the transaction that `connection` has open.

        Raises:
            Superseded: the fence has grown: roll back.
        """
        parameters = (
            None if cursor is None else json.dumps(cursor),
            rows,
            done,
            self.spec.id,
            step.name,
            self._fence,
            batches,
        )
        result = await connection.exec_driver_sql(self._checkpoint, parameters)
        if result.rowcount == 0:
            raise Superseded(self.spec.id)

    async def finish(
        self, state: str, *, result: str | None = None, error: str | None = None, traceback: str | None = None
    ) -> None:
        """Write the end of the run down.

        Args:
            state: succeeded, dead or cancelled.
            result: JSON.
            error: one line.
            traceback: for `worker runs --id`.

        Raises:
            Superseded: another worker has the run.
        """
        await self._end(
            "finish_run",
            {"state": state, "result": result, "error": error, "traceback": _tail(traceback)},
        )

    async def hand_back(
        self, state: str, *, failed: bool, error: str | None = None, traceback: str | None = None
    ) -> int:
        """Give the run back to the queue.

        Args:
            state: waiting or paused.
            failed: whether this try counts, unless it committed a batch.

        Returns:
            The number of the next try.

        Raises:
            Superseded: another worker has the run.
        """
        attempt = 1 if self.progressed else self.attempt + failed
        values = {"state": state, "attempt": attempt, "batches": self.batches}
        await self._end("hand_back", values | {"error": error, "traceback": _tail(traceback)})
        return attempt

    async def _end(self, name: str, values: dict[str, Any]) -> None:
        # On a connection of its own: the run's may be what has failed.
        async with self._database.connection() as connection:
            values |= {"id": self.spec.id, "fence": self._fence}
            if (await connection.execute(query(name), values)).rowcount == 0:
                raise Superseded(self.spec.id)

    async def release(self) -> None:
        """Give the connection back; what it had open is rolled back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await settle(connection.close())


def _shown(key: list[list[str]]) -> str:
    return ", ".join(f"{column} {type_} {direction}" for column, type_, direction in key) or "no key"


def _tail(text_: str | None) -> str | None:
    return text_[-_SHOWN_TRACEBACK:] if text_ else text_
