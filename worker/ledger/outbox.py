"""The outbox: rows of runs that were enqueued in the transactions of others, and wait for a relay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from worker.db.engine import Database
from worker.ledger.queries import query

#: The channel on which PostgreSQL announces new rows.
CHANNEL = "worker_outbox"
_MOST_COUNTED = 1_000_000


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """A row of the outbox.

    Attributes:
        id: its place in the order of the rows.
        run_id: id of its run.
        queue: the queue of the run; None for the queue of the relay's worker.
        payload: the payload; None if it is too long to be read.
        bytes: length of the payload.
        due_ms: due time in ms since 1970; None for at once.
        priority: priority of the run.
        options: the further options, the text of a JSON object; None for none.
        mark: text that belongs to this row alone, in any database and at any time.
    """

    id: int
    run_id: str
    queue: str | None
    payload: str | None
    bytes: int
    due_ms: int | None
    priority: int
    options: str | None
    mark: str


@dataclass(frozen=True)
class OutboxState:
    """The state of the outbox.

    Attributes:
        waiting: number of rows that wait for a relay.
        oldest_seconds: age of the oldest of them; 0 if there is none.
        refused: number of rows that cannot be relayed.
        problem: the reason for the first of those; None if there is none.
    """

    waiting: int
    oldest_seconds: float
    refused: int
    problem: str | None


@dataclass(frozen=True)
class OutboxEntry:
    """A row of the outbox, for operators.

    Attributes:
        id: its place in the order of the rows.
        run_id: id of its run.
        job: name of the job.
        queue: the queue of the run; None for the queue of the relay's worker.
        priority: priority of the run.
        due_at: due time; None for at once.
        created_at: time at which it was written.
        problem: why it cannot be relayed; None if it waits for a relay.
    """

    id: int
    run_id: str
    job: str
    queue: str | None
    priority: int
    due_at: datetime | None
    created_at: datetime
    problem: str | None


class Outbox:
    """The outbox, for operators.

    Args:
        database: The database of the ledger.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def list_rows(
        self, *, refused: bool = False, search: str | None = None, before: int | None = None, limit: int = 50
    ) -> list[OutboxEntry]:
        """Return rows, newest first.

        Args:
            refused: Only rows that cannot be relayed.
            search: Only rows with this text in the id of the run, job, queue or problem; case does not count.
            before: Only rows with a smaller id.
            limit: The most rows to return.
        """
        values = {"refused": refused, "search": search, "before": before, "limit": limit}
        async with self._database.connection() as connection:
            rows = await connection.execute(query("list_outbox"), values)
            return [OutboxEntry(**row._mapping) for row in rows]

    async def read_state(self) -> OutboxState:
        """Return how many rows wait, since when, and how many cannot be relayed."""
        async with self._database.connection() as connection:
            return await read_outbox_state(connection)

    async def clear_problems(self, ids: Sequence[int] | None) -> list[int]:
        """Let relays try rows again that were refused; None for all. Return the ids of those that were."""
        return await self._change("clear_outbox_problems", ids)

    async def delete_refused(self, ids: Sequence[int] | None) -> list[int]:
        """Delete rows that were refused; None for all. Return the ids of those that were. Their runs never exist."""
        return await self._change("delete_refused_outbox", ids)

    async def _change(self, name: str, ids: Sequence[int] | None) -> list[int]:
        async with self._database.connection() as connection:
            found = await connection.scalars(query(name), {"ids": None if ids is None else list(ids)})
            return sorted(found)


async def claim_rows(
    connection: AsyncConnection,
    *,
    after: int,
    limit: int,
    max_bytes: int,
    most_bytes: int,
    queues: Sequence[str] | None = None,
) -> list[OutboxRow]:
    """Lock and return the next rows of the outbox, until the end of the transaction.

    Args:
        connection: a connection in a transaction.
        after: id of the row after which to begin.
        limit: most rows.
        max_bytes: longest payload that is read.
        most_bytes: length of all payloads together after which the rest is left for the next call.
        queues: the queues whose rows are claimed, besides rows that name no queue; None for all.
    """
    limits = {"after": after, "limit": limit, "max_bytes": max_bytes, "most_bytes": most_bytes}
    values = {**limits, "queues": None if queues is None else list(queues)}
    return [OutboxRow(*row) for row in await connection.execute(query("claim_outbox"), values)]


async def delete_rows(connection: AsyncConnection, ids: Sequence[int]) -> None:
    """Delete rows of the outbox."""
    await connection.execute(query("delete_outbox"), {"ids": list(ids)})


async def mark_rows(connection: AsyncConnection, problems: Iterable[tuple[int, str]]) -> None:
    """Record why rows of the outbox cannot be relayed; given as pairs of id and reason."""
    values = [{"id": row_id, "problem": problem} for row_id, problem in problems]
    await connection.execute(query("mark_outbox"), values)


async def list_marks(connection: AsyncConnection, ids: Sequence[int]) -> set[str]:
    """Return the marks of those of some rows that the outbox still has."""
    return set(await connection.scalars(query("list_outbox_marks"), {"ids": list(ids)}))


async def read_outbox_state(connection: AsyncConnection, *, most: int = _MOST_COUNTED) -> OutboxState:
    """Return how many rows wait, since when, and how many cannot be relayed. Counts `most` rows at most."""
    row = (await connection.execute(query("read_outbox_state"), {"most": most})).one()
    return OutboxState(row.waiting, row.oldest_seconds, row.refused, row.problem)
