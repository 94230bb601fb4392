"""What a key does to what is selected: the orders of the command line, by the same functions."""

from __future__ import annotations

from typing import Literal

from worker.cli.app import open_database
from worker.cli.top.model import Frame
from worker.cli.top.tables import Name
from worker.db.engine import Database
from worker.ledger import Ledger
from worker.queue.client import Client
from worker.queue.commands import retry_run
from worker.settings import Settings

Order = Literal["pause", "resume", "cancel", "retry", "drain"]

#: The tables in which an order has a meaning.
TABLES: dict[Order, tuple[Name, ...]] = {
    "pause": ("runs", "jobs", "queues"),
    "resume": ("runs", "jobs", "queues", "holds"),
    "cancel": ("runs",),
    "retry": ("failures",),
    "drain": ("workers",),
}


class Steering:
    """Gives orders.

    Args:
        client: for Redis.
        settings: for the ledger, which is connected to when something is retried.
    """

    def __init__(self, client: Client, settings: Settings) -> None:
        self._client = client
        self._settings = settings
        self._database: Database | None = None

    async def give(self, order: Order, key: str, frame: Frame) -> str:
        """Give an order.

        Args:
            order: which one.
            key: what is selected.
            frame: in which it was.

        Returns:
            What to tell.

        Raises:
            ServerUnavailable: Redis does not answer.
            SQLAlchemyError, OSError: a retry, and PostgreSQL does not answer.
        """
        match order:
            case "pause":
                await self._client.pause(key)
                return f"paused: {key}"
            case "resume":
                return await self._resume(key, frame)
            case "cancel":
                queue = next((run.queue for run in frame.runs if run.id == key and run.queue), None)
                gone = await self._client.cancel(key, queue=queue)
                return f"neither waiting nor running: {key}" if gone else f"cancelled: {key}"
            case "retry":
                again = await retry_run(self._client.redis, self._ledger(), key, from_start=False)
                return f"{key}: in the queue again" if again else f"{key} is no dead letter any more"
            case "drain":
                await self._client.drain(key)
                return f"draining: {key}"

    async def take_back(self, hold: str) -> str:
        """Take an order back that holds runs back: `pause <name>` or `pace <name>`, as its row has it."""
        kind, _, name = hold.partition(" ")
        if kind == "pause":
            return f"resumed: {name}" if await self._client.resume(name) else f"not paused: {name}"
        if kind == "pace":
            await self._client.pace(name, rows_per_second=None)
            return f"pace of {name}: as settings and job say"
        return f"the {kind} of {name} is no order to pause or to pace, which can be taken back here"

    async def close(self) -> None:
        """Close what was opened."""
        if self._database is not None:
            await self._database.close()

    async def _resume(self, key: str, frame: Frame) -> str:
        if await self._client.resume(key):
            return f"resumed: {key}"
        why = next((run.reason for run in frame.runs if run.id == key and run.state in ("paused", "pausing")), "")
        return f"not paused: {key}" + (f" ({why}: resume that)" if why else "")

    def _ledger(self) -> Ledger:
        if self._database is None:
            self._database = open_database(self._settings)
        return Ledger(self._database)
