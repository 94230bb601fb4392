"""The actions of the keys on the selected row: the operator commands of the command line."""

from __future__ import annotations

from typing import Literal

from worker.cli.top.model import Frame
from worker.cli.top.tables import Name
from worker.queue.client import Client

Action = Literal["pause", "resume", "cancel", "retry", "drain"]

#: The tables in which an action is available.
TABLES: dict[Action, tuple[Name, ...]] = {
    "pause": ("runs", "jobs", "queues"),
    "resume": ("runs", "jobs", "queues", "holds"),
    "cancel": ("runs",),
    "retry": ("failures",),
    "drain": ("workers",),
}


class Actions:
    """Runs actions.

    Args:
        client: The connection to Redis, and to the ledger for retries.
    """

    def __init__(self, client: Client) -> None:
        self._client = client

    async def run(self, action: Action, key: str, frame: Frame) -> str:
        """Run an action.

        Args:
            action: The action.
            key: The selected run, job, queue or worker.
            frame: The frame that showed it.

        Returns:
            The outcome, in one line.

        Raises:
            ServerUnavailable: Redis does not answer, or PostgreSQL, if the action is a retry.
        """
        match action:
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
                again = await self._client.retry_now(key)
                return f"enqueued again: {key}" if again else f"no longer dead: {key}"
            case "drain":
                await self._client.drain(key)
                return f"draining: {key}"

    async def undo(self, hold: str) -> str:
        """Undo a command that holds runs back: `pause <name>` or `pace <name>`, the key of its row."""
        kind, _, name = hold.partition(" ")
        if kind == "pause":
            return f"resumed: {name}" if await self._client.resume(name) else f"not paused: {name}"
        if kind == "pace":
            await self._client.pace(name, rows_per_second=None)
            return f"pace of {name}: as settings and job set it"
        return f"the {kind} of {name} is neither a pause nor a pace: it cannot be undone here"

    async def _resume(self, key: str, frame: Frame) -> str:
        if await self._client.resume(key):
            return f"resumed: {key}"
        why = next((run.reason for run in frame.runs if run.id == key and run.state in ("paused", "pausing")), "")
        return f"not paused: {key}" + (f" ({why}: resume that)" if why else "")
