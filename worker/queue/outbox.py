"""The outbox as its writers see it: the rows of runs that are enqueued in the caller's transaction.

A relay in each worker moves the rows to Redis after the transaction has committed (worker/runtime/relay.py). `make_row`
and `INSERT` are free of IO, for clients of any kind; `OutboxWriter` writes through a session or a connection of
SQLAlchemy. Neither SQLAlchemy nor a driver is loaded before that.

`options` of a row is an object with the keys of relay.lua: `lock`, `counts` and `lock_ms` of a unique run, `replace`,
and `fair`, the weight and the flow of a fair run.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache
from typing import Any, NamedTuple

from worker.errors import (
    DatabaseNotMigrated,
    InvalidArguments,
    InvalidPayload,
    LonghaulError,
    ServerUnavailable,
    UsageError,
)
from worker.job.definition import Job
from worker.job.propagation import looking_command
from worker.queue.decoding import is_other_key, read_json
from worker.queue.payload import LONGEST_ID, LONGEST_MS, Payload, decode_payload, is_unicode, read_run_id
from worker.queue.store import Enqueued, Lock

#: Inserts rows; its only parameter is the JSON text of `rows_json`.
INSERT = """
INSERT INTO worker.outbox (run_id, job, queue, payload, due_at, priority, options)
SELECT run_id, job, queue, payload,
       COALESCE(at, pg_catalog.clock_timestamp() + delay * CAST('1 second' AS interval)), priority, options
FROM pg_catalog.json_to_recordset(CAST(:rows AS json)) AS given
     (run_id text, job text, queue text, payload text, delay float8, at timestamptz, priority integer, options jsonb)
"""
_NOT_MIGRATED = (
    DatabaseNotMigrated,
    "the database of this session has no table worker.outbox: use a session of the database that the workers use, and "
    "run `worker migrate`",
)
#: The error for each code of PostgreSQL that the caller can do something about.
_REFUSALS: Mapping[str, tuple[type[LonghaulError], str]] = {
    "42P01": _NOT_MIGRATED,
    "3F000": _NOT_MIGRATED,
    "42501": (
        UsageError,
        "the role of this session may not insert into worker.outbox: send the output of `worker grants client ROLE` "
        "to psql, as the owner of the schema",
    ),
    "25006": (
        ServerUnavailable,
        "the transaction of this session is read-only, or on a standby: use a session that may write. If it chooses "
        "an engine by the statement, pass a connection to the primary",
    ),
    "25P02": (
        ServerUnavailable,
        "an earlier statement of this transaction failed, and PostgreSQL refuses all others until ROLLBACK: roll back "
        "first, or put the statement that may fail into a savepoint, session.begin_nested()",
    ),
}
_LOCK_COUNTS = ("time", "active", "waiting")


def check_queue_name(queue: str) -> None:
    """Raise `InvalidArguments` unless a queue has a name that a queue may have."""
    is_text = isinstance(queue, str) and 0 < len(queue) <= LONGEST_ID
    if not is_text or not queue.isprintable() or not is_unicode(queue):
        raise InvalidArguments(f"queue={queue!r:.100}: a queue has a name of 1 to {LONGEST_ID} printable characters")
    if is_other_key(queue):
        raise InvalidArguments(f"queue={queue[:100]!r} is the name of another key of Redis: choose another name")


def check_job_name(job: str) -> None:
    """Raise `InvalidArguments` unless a text can be the name of a job."""
    if not 0 < len(job) <= LONGEST_ID or not is_unicode(job) or "\x00" in job:
        raise InvalidArguments(f"{job[:100]!r} is not the name of a job")


def make_row(
    run_id: str,
    payload: str,
    *,
    job: str,
    queue: str,
    delay: float = 0.0,
    at: datetime | None = None,
    replace: bool = False,
    lock: Lock | None = None,
    priority: int = 0,
    fair: str = "",
) -> dict[str, Any]:
    """Return the row of a run, as an object for `rows_json`.

    Args:
        run_id: its id.
        payload: its text.
        job: name of its job.
        queue: its queue.
        delay: seconds from now until it is due.
        at: the due time, instead of `delay`.
        replace: whether to replace a waiting run with this id or lock.
        lock: the lock of a unique job.
        priority: due jobs of a higher priority are claimed first.
        fair: weight and flow of a fair run (fair.lua); empty for any other.

    Raises:
        InvalidArguments: PostgreSQL or the relay would not accept the row.
    """
    check_job_name(job)
    check_queue_name(queue)
    options: dict[str, Any] = {}
    if lock is not None:
        options |= {"lock": lock.key, "counts": lock.counts, "lock_ms": lock.ms}
    if replace:
        options["replace"] = True
    if fair:
        options["fair"] = fair
    return {
        "run_id": run_id,
        "job": job,
        "queue": queue,
        "payload": payload,
        "delay": delay or None,
        "at": None if at is None else at.isoformat(),
        "priority": priority,
        "options": options or None,
    }


def rows_json(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the parameter of `INSERT`."""
    return json.dumps(rows)


class RelayedRun(NamedTuple):
    """A row of the outbox that was checked, as relay.lua takes it.

    Attributes:
        payload: the payload.
        description: JSON text of queue, level and options; the same text for rows that have the same.
    """

    payload: bytes
    description: str


def check_row(
    run_id: str,
    payload: str,
    *,
    queue: str,
    priority: int,
    options: str | None,
    max_payload_bytes: int,
    jobs: Mapping[str, Job[..., Any]],
) -> RelayedRun:
    """Check a row of the outbox, which any role with the right to write there may have written.

    If its job was enqueued by name and is one of `jobs`, complete the row by the job's rules.

    Raises:
        InvalidPayload: it is not a run that a client may enqueue.
    """
    if read_run_id(run_id) is None:
        raise InvalidPayload(f"run_id {run_id[:100]!r} is not the id of a run")
    raw = payload.encode()
    decoded = decode_payload(raw, accept_pickle=False, max_bytes=max_payload_bytes)
    if decoded.hand or decoded.quarantine_retry or decoded.in_ledger or decoded.pickled or decoded.group:
        raise InvalidPayload(
            "the payload has one of the keys hand, only, ledger, pickle and g, which only workers write"
        )
    try:
        for call in decoded.next_calls:
            check_queue_name(call.get("q", queue))
        if not decoded.version and options is None and (job := jobs.get(decoded.function)) is not None:
            priority, options = _complete(job, decoded, run_id, priority)
        return RelayedRun(raw, _describe(queue, priority, options))
    except InvalidArguments as error:
        raise InvalidPayload(str(error)) from None


def _complete(job: Job[..., Any], payload: Payload, run_id: str, priority: int) -> tuple[int, str | None]:
    """Return priority and options of a run that was enqueued by name, by the rules of its job.

    Arguments that the job does not take are left to the worker that claims the run: its code may be newer than ours.

    Raises:
        InvalidPayload: the job is a data migration, and the id is not that of its one run.
    """
    if job.rules.once and run_id != job.name:
        raise InvalidPayload(f"{job.name} is a data migration, which has one run: enqueue it with id => '{job.name}'")
    priority = priority or job.priority
    if job.unique is None and job.fair is None:
        return priority, None
    try:
        arguments = job.encode_arguments((), job.decode_arguments(payload.args, payload.kwargs))
    except Exception:  # noqa: BLE001 - validators of the application raise anything, and other rows go on
        return priority, None
    options: dict[str, Any] = {}
    if job.unique is not None:
        seconds = job.unique.seconds
        options |= {"lock": job.unique_key(arguments), "counts": job.unique.counts, "lock_ms": round(seconds * 1000)}
    if fair := job.fair_entry(arguments):
        options["fair"] = fair
    return priority, json.dumps(options)


@lru_cache(maxsize=1000)
def _describe(queue: str, priority: int, options: str | None) -> str:
    check_queue_name(queue)
    return json.dumps({"queue": queue, "level": str(priority), "fair": "", **_read_options(options)})


def _read_options(text: str | None) -> dict[str, Any]:
    values = {} if text is None else read_json(text, "options")
    if not isinstance(values, dict) or values.keys() - {"replace", "fair", "lock", "counts", "lock_ms"}:
        raise InvalidPayload(f"the options have an unknown key, or are not an object: {text}"[:200])
    is_valid = type(values.get("replace", False)) is bool and isinstance(values.get("fair", ""), str)
    if values.keys() & {"lock", "counts", "lock_ms"}:
        ms = values.get("lock_ms")
        is_valid = is_valid and isinstance(values.get("lock"), str) and values.get("counts") in _LOCK_COUNTS
        is_valid = is_valid and type(ms) is int and 1 <= ms <= LONGEST_MS
    if not is_valid:
        raise InvalidPayload(f"an option has a value of a wrong type: {text}"[:200])
    return values


class OutboxWriter:
    """Writes runs to the outbox, in place of a `QueueStore`. The queue decides later whether an id is known.

    Args:
        connection: a session or a connection of SQLAlchemy, of either kind, in whose transaction the rows are.
        job: name of the job.

    Raises:
        InvalidArguments: it is none of those.
    """

    def __init__(self, connection: Any, job: str) -> None:
        from sqlalchemy import Connection  # imported late: a client that enqueues in no transaction needs none of it
        from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
        from sqlalchemy.orm import Session, scoped_session

        kinds = (AsyncSession, AsyncConnection, async_scoped_session, Session, Connection, scoped_session)
        if not isinstance(connection, kinds):
            raise InvalidArguments(
                f"enqueue_in: {type(connection).__name__} is not an AsyncSession, AsyncConnection, Session or "
                f"Connection of SQLAlchemy; with another library, call the SQL function worker.enqueue"
            )
        self._connection = connection
        self._job = job

    async def enqueue(self, run_id: str, payload: str, **options: Any) -> Enqueued:
        """Write one run; see `make_row`."""
        await self._insert([make_row(run_id, payload, job=self._job, **options)])
        return Enqueued(run_id, is_new=True, replaced=False)

    async def enqueue_many(
        self, jobs: Iterable[tuple[str, str]], *, fair: Sequence[str] = (), **options: Any
    ) -> frozenset[int]:
        """Write many runs, each given as id and payload; see `make_row`."""
        entries = fair or ("",) * len(jobs := list(jobs))
        rows = [
            make_row(run_id, payload, job=self._job, fair=entry, **options)
            for (run_id, payload), entry in zip(jobs, entries, strict=True)
        ]
        await self._insert(rows)
        return frozenset()

    async def _insert(self, rows: Sequence[Mapping[str, Any]]) -> None:
        from sqlalchemy import text
        from sqlalchemy.exc import DBAPIError

        if looking := looking_command.get():
            raise UsageError(f"{looking} sends nothing to the queue, and the job enqueues runs here")
        connection = await self._open_transaction()
        try:
            # Of a cursor on the server, which an option of the connection can demand, INSERT is no statement.
            outcome = connection.execute(
                text(INSERT), {"rows": rows_json(rows)}, execution_options={"stream_results": False, "yield_per": None}
            )
            if inspect.isawaitable(outcome):
                await outcome
        except DBAPIError as error:
            if (dialect := str(connection.dialect.name)) != "postgresql":
                raise InvalidArguments(
                    f"enqueue_in: the session is on a database of {dialect}: use a session of the PostgreSQL database "
                    f"that the workers use"
                ) from error
            state = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
            if (refusal := _REFUSALS.get(str(state))) is None:
                raise
            kind, problem = refusal
            raise kind(f"enqueue_in: {problem}") from error

    async def _open_transaction(self) -> Any:
        """Return the connection that the rows are written through, synchronous or not.

        Raises:
            InvalidArguments: the session has no engine for the outbox, or no transaction that can hold the rows.
        """
        from sqlalchemy import Connection, TwoPhaseTransaction
        from sqlalchemy.exc import UnboundExecutionError
        from sqlalchemy.ext.asyncio import AsyncConnection

        connection: Any = self._connection
        if not isinstance(connection, Connection | AsyncConnection):
            try:
                connection = connection.connection()
                if not isinstance(connection, Connection):
                    connection = await connection
            except UnboundExecutionError as error:
                raise InvalidArguments(
                    "enqueue_in: the session has no engine for worker.outbox, because it chooses an engine by the "
                    "class or the table: pass a connection, session.connection(bind_arguments={'mapper': User})"
                ) from error
        inner: Connection | None = getattr(connection, "sync_connection", connection)
        if inner is None:
            return connection  # it was never opened: its own error says so
        if getattr(inner.connection.dbapi_connection, "autocommit", None) is True:
            raise InvalidArguments(
                "enqueue_in: the session is in AUTOCOMMIT, where each statement is a transaction of its own: use a "
                "session with another isolation level, or `enqueue` after your statements"
            )
        if isinstance(inner.get_transaction(), TwoPhaseTransaction):
            raise InvalidArguments(
                "enqueue_in: the transaction has two phases, and PostgreSQL cannot prepare one that announces rows "
                "of the outbox: use a transaction of one phase, or `enqueue` after its COMMIT"
            )
        return connection
