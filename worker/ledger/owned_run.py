"""One try of one run: its fence, its steps, and the connection that it works on."""

from __future__ import annotations

import json
import logging
import traceback
from typing import Any

from asyncpg.exceptions import DivisionByZeroError
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.cancellation import run_to_completion
from worker.db.driver import Driver
from worker.db.engine import Database
from worker.db.sessions import ScopedSession
from worker.db.simple_query import TextStatement
from worker.errors import AlreadyFinished, CursorMismatch, FencedOut, LonghaulError, RunIdConflict, format_error
from worker.ledger.queries import query, source
from worker.ledger.records import RunSpec, StepRecord, StepSpec

logger = logging.getLogger("longhaul.ledger")

_SHOWN_TRACEBACK = 8_000
#: Longest wait for a lock of the former owner before his connection is ended.
_LOCK_WAIT_MS = 2_000
_LOCK_NOT_AVAILABLE = "55P03"
_CHECKPOINT = TextStatement("longhaul_checkpoint", source("checkpoint"))


class OwnedRun:
    """A run that this process owns, until its fence says otherwise.

    It keeps one connection of the pool from its first loop to its end: its prepared statements stay warm, and
    the ledger can name the backend that a successor has to end if this process freezes.

    Behind PgBouncer it names none. A backend serves one client after the other there, and nobody can tell, at the
    moment of ending it, whether it is still in the transaction that was meant or in a stranger's. What a frozen worker
    has open is ended by `idle_in_transaction_session_timeout`, which each transaction sets; a successor waits for that.
    A worker that has died needs none of it: PgBouncer sees its connection end, and closes the backend.
    """

    def __init__(self, database: Database, spec: RunSpec, owner: str) -> None:
        self._database = database
        self._owner = owner
        self._connection: AsyncConnection | None = None
        self._driver: Driver | None = None
        self._fence = 0
        self.spec = spec
        self.attempt = 1
        self.takeovers = 0
        self.batches_before = 0
        self.rows_before = 0
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

    @property
    def driver(self) -> Driver:
        """The driver beneath that connection."""
        if self._driver is None:
            raise LonghaulError("the run has ended: its loops cannot be used any more")
        return self._driver

    def session(self, scope: str) -> ScopedSession:
        """Return a new session on the run's own connection; the loop that asked for it ends it."""
        session = ScopedSession(bind=self.connection, expire_on_commit=False, close_resets_only=False)
        session.bind_to_scope(scope)
        return session

    async def begin(self) -> None:
        """Take the run: as a new one, after it was handed back, or from an owner that has died.

        Raises:
            AlreadyFinished: the ledger has its end.
            RunIdConflict: the ledger has another job, or other arguments, under its id.
        """
        self._connection = connection = await self._database.engine.connect()
        try:
            try:
                await connection.execute(text(f"SET LOCAL lock_timeout = {_LOCK_WAIT_MS}"))
                await self._take(connection)
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) != _LOCK_NOT_AVAILABLE:
                    raise
                # Its former owner is frozen with a lock on it: end him first, without waiting for that lock.
                await run_to_completion(connection.rollback())
                row = (await connection.execute(query("find_run"), {"id": self.spec.id})).one()
                await self._terminate(connection, row.backend_pid, row.backend_start)
                await connection.execute(text("SET LOCAL lock_timeout = 0"))
                await self._take(connection)
            await run_to_completion(connection.commit())
            self._driver = await Driver.from_connection(connection)
            await self._driver.prepare(connection, _CHECKPOINT)
        except BaseException:
            await self.release()
            raise

    async def _take(self, connection: AsyncConnection) -> None:
        spec = self.spec
        values = {"id": spec.id, "job": spec.job, "queue": spec.queue, "owner": self._owner}
        values |= {"payload": spec.payload, "arguments": spec.arguments}
        taken = (await connection.execute(query("claim_run"), values)).one_or_none()
        if taken is None:
            row = (await connection.execute(query("find_run"), {"id": spec.id})).one()
            if not row.finished:
                raise RunIdConflict(spec.id, row.job, row.arguments, spec.job, spec.arguments)
            if row.payload == spec.payload:
                raise AlreadyFinished(row.state, row.result, row.error)
            taken = (await connection.execute(query("restart_finished_run"), values)).one()
        died = taken.state_before == "running" and not taken.is_new
        if died and taken.backend_pid is not None:
            await self._terminate(connection, taken.backend_pid, taken.backend_start)
        rows = await connection.execute(query("claim_steps"), {"id": spec.id, "fence": taken.fence})
        self.steps = {row.name: StepRecord(**row._mapping) for row in rows}
        self._fence = taken.fence
        self.takeovers = taken.takeovers + died
        self.attempt = taken.attempt
        if died:
            self.attempt = 1 if self.batches > taken.batches_before else taken.attempt + 1
        self.batches_before, self.rows_before = self.batches, self.rows
        await connection.execute(
            query("record_owner"),
            {
                "id": spec.id,
                "fence": self._fence,
                "attempt": self.attempt,
                "batches": self.batches,
                "takeovers": self.takeovers,
                "backend_pid": await self._own_backend(connection),
            },
        )

    async def _own_backend(self, connection: AsyncConnection) -> int | None:
        if self._database.pooled:
            return None
        pid: int = await connection.scalar(text("SELECT pg_backend_pid()"))
        return pid

    async def _terminate(self, connection: AsyncConnection, pid: int | None, started: object) -> None:
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
            FencedOut: another worker has the run.
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
            raise FencedOut(self.spec.id)
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
        if step is None or (step.done and spec.named):
            return step
        if (step.kind, step.key, step.statement) != (spec.kind, spec.key, spec.statement):
            raise CursorMismatch(
                f"step {spec.name!r} of run {self.spec.id} {'is the end' if step.done else f'stands at {step.cursor}'} "
                f"of another walk:\n"
                f"  in the ledger: {step.kind} by {_shown(step.key)}: {step.statement}\n"
                f"  in the code:   {spec.kind} by {_shown(spec.key)}: {spec.statement}\n"
                f"Bring the old code back, or begin again: worker retry {self.spec.id} --from-start"
            )
        return step

    async def restart_step(self, step: StepRecord) -> None:
        """Begin a step from its first row again."""
        values = {"run_id": self.spec.id, "name": step.name, "fence": self._fence}
        if (await self.connection.execute(query("restart_step"), values)).rowcount == 0:
            raise FencedOut(self.spec.id)
        self.batches_before -= step.batches
        self.rows_before -= step.rows
        step.cursor, step.rows, step.batches = None, 0, 0

    def checkpoint(self, step: StepRecord, *, cursor: list[Any] | None, rows: int, done: bool, batches: int = 1) -> str:
        """Return the statement that moves the cursor, and fails where the fence has grown: see `refuse_if_replaced`."""
        written = None if cursor is None else json.dumps(cursor)
        values = (written, rows, done, self.spec.id, step.name, self._fence, batches)
        return self.driver.text_of(_CHECKPOINT, values)

    async def refuse_if_replaced(self, error: BaseException) -> None:
        """Look whether an error of the checkpoint, whose transaction is rolled back, was that of its fence.

        Raises:
            FencedOut: another worker has the run.
        """
        # A constraint of the job's own tables that waits for COMMIT can divide by zero as well.
        if isinstance(error, DivisionByZeroError):
            fence = await self.driver.raw.fetchval(source("read_fence"), self.spec.id)
            if fence != self._fence:
                raise FencedOut(self.spec.id) from None

    async def quarantine(self, raw: Any, step: StepRecord, key: list[Any], error: BaseException, row: Any) -> None:
        """Set a row aside, in the transaction that `raw` has open."""
        trace = "".join(traceback.format_exception(error))
        values = (json.dumps(key), _storable(format_error(error)), _tail(trace), _without_nul(json.dumps(row)))
        await raw.execute(source("quarantine_row"), self.spec.id, step.name, *values)

    async def quarantined_keys(self) -> list[list[Any]]:
        """Return the keys of the rows that this run is to do again, of the run that set them aside."""
        assert self.spec.only is not None  # noqa: S101
        run_id, step = self.spec.only
        rows = await self.connection.execute(query("quarantined_keys"), {"run_id": run_id, "step": step})
        return [row.key for row in rows]

    async def take_out_of_quarantine(self, raw: Any, key: list[Any]) -> None:
        """Forget a row that was done again, in the transaction that `raw` has open."""
        assert self.spec.only is not None  # noqa: S101
        await raw.execute(source("delete_quarantined_row"), *self.spec.only, json.dumps(key))

    async def remember_skipped(self, raw: Any, step: StepRecord, keys: list[list[Any]]) -> None:
        """Note rows that somebody else has locked, in the transaction that `raw` has open."""
        await raw.execute(source("remember_skipped"), self.spec.id, step.name, [json.dumps(key) for key in keys])

    async def skipped(self, raw: Any, step: StepRecord, limit: int) -> dict[int, list[Any]]:
        """Return keys of rows that were skipped, by the number under which `forget_skipped` knows them."""
        rows = await raw.fetch(source("list_skipped"), self.spec.id, step.name, limit)
        return {row["id"]: json.loads(row["key"]) for row in rows}

    async def forget_skipped(self, raw: Any, ids: list[int]) -> None:
        """Forget rows that were skipped, in the transaction that `raw` has open."""
        await raw.execute(source("forget_skipped"), ids)

    async def finish(
        self, state: str, *, result: str | None = None, error: str | None = None, trace: str | None = None
    ) -> None:
        """Write the end of the run down.

        Args:
            state: succeeded, dead or cancelled.
            result: JSON.
            error: one line.
            trace: traceback, for `worker runs --id`.

        Raises:
            FencedOut: another worker has the run.
        """
        await self._end(
            "finish_run",
            {"state": state, "result": result, "error": _storable(error), "traceback": _tail(trace)},
        )

    async def hand_back(self, state: str, *, failed: bool, error: str | None = None, trace: str | None = None) -> int:
        """Give the run back to the queue.

        Args:
            state: waiting or paused.
            failed: whether this try counts, unless it committed a batch.

        Returns:
            The number of the next try.

        Raises:
            FencedOut: another worker has the run.
        """
        attempt = 1 if self.progressed else self.attempt + failed
        values = {"state": state, "attempt": attempt, "batches": self.batches}
        await self._end("release_run", values | {"error": _storable(error), "traceback": _tail(trace)})
        return attempt

    async def _end(self, name: str, values: dict[str, Any]) -> None:
        # On a connection of its own: the run's may be what has failed.
        async with self._database.connection() as connection:
            values |= {"id": self.spec.id, "fence": self._fence}
            if (await connection.execute(query(name), values)).rowcount == 0:
                raise FencedOut(self.spec.id)

    async def release(self, *, discard: bool = False) -> None:
        """Give the connection back; what it had open is rolled back.

        Args:
            discard: close it: somebody who is not to be trusted any more may still use it.
        """
        connection, self._connection = self._connection, None
        driver, self._driver = self._driver, None
        if connection is not None:
            if discard or (driver is not None and (driver.raw.is_closed() or driver.raw.is_in_transaction())):
                # Gone, or still in use by a task that the job has left behind: the pool must not hand it out again.
                await run_to_completion(connection.invalidate())
            await run_to_completion(connection.close())


def _shown(key: list[list[str]]) -> str:
    return ", ".join(f"{column} {type_} {direction}" for column, type_, direction in key) or "no key"


def _tail(text_: str | None) -> str | None:
    return _storable(text_[-_SHOWN_TRACEBACK:]) if text_ else text_


def _without_nul(json_text: str) -> str:
    """Return JSON that jsonb takes: it has no place for NUL."""
    return json_text.replace("\\u0000", "\\\\x00")


def _storable(text_: str | None) -> str | None:
    """Return a text that PostgreSQL takes: without NUL and halves of surrogate pairs."""
    return text_.replace("\x00", "\\x00").encode(errors="backslashreplace").decode() if text_ else text_
