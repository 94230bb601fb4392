"""How far a replica is: what was committed before a walk began has to be there before it is read."""

from __future__ import annotations

from decimal import Decimal

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from worker.errors import UsageError

_WRITTEN = text("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn")
_REPLAYED = text("SELECT NOT pg_is_in_recovery() OR pg_last_wal_replay_lsn() - '0/0'::pg_lsn >= :position")


async def written(primary: AsyncConnection) -> Decimal:
    """Return the place in the primary's WAL that holds all commits before the last one of this process."""
    position: Decimal = await primary.scalar(_WRITTEN)
    return position


async def has_replayed(replica: AsyncConnection, position: Decimal) -> bool:
    """Tell whether a snapshot that is taken there now has all up to that place. Its transaction is over.

    Raises:
        UsageError: that server is a replica of another kind, which does not say how far it is.
    """
    told = await replica.scalar(_REPLAYED, {"position": position})
    await replica.rollback()
    if told is None:
        raise UsageError("database.replica_url: pg_last_wal_replay_lsn() is null there; it is no streaming replica")
    return bool(told)
