"""The outbox: rows of runs that were enqueued in the transactions of others, and wait for a relay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncConnection

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


async def claim_rows(
    connection: AsyncConnection, *, after: int, limit: int, max_bytes: int, most_bytes: int
) -> list[OutboxRow]:
    """Lock and return the next rows of the outbox, until the end of the transaction.

    Args:
        connection: a connection in a transaction.
        after: id of the row after which to begin.
        limit: most rows.
        max_bytes: longest payload that is read.
        most_bytes: length of all payloads together after which the rest is left for the next call.
    """
    values = {"after": after, "limit": limit, "max_bytes": max_bytes, "most_bytes": most_bytes}
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
