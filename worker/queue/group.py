"""Groups: many runs, and a callback that runs after all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from worker.awaiting import track_awaits
from worker.errors import InvalidArguments
from worker.queue.run import Run
from worker.queue.run_reader import RunReader

R = TypeVar("R")

CompleteWhen = Literal["all_succeeded", "all_finished"]


class GroupProgress(NamedTuple):
    """The progress of a group.

    Attributes:
        size: number of its members.
        done: number of members that are complete.
        called: whether all are complete and the callback was enqueued.
    """

    size: int
    done: int
    called: bool


@track_awaits("group")
@dataclass(frozen=True)
class Group(Generic[R]):
    """An enqueued group.

    Attributes:
        id: id of the group.
        runs: its members, in order.
        callback: run of the callback; None without one.
    """

    reader: RunReader
    id: str
    runs: Sequence[Run[Any]]
    callback: Run[R] | None

    async def progress(self) -> GroupProgress:
        """Return the progress of the group.

        Raises:
            InvalidArguments: the group does not exist, or ended more than 30 days ago.
            ServerUnavailable: Redis does not answer.
        """
        found = await self.reader.command(self.reader.store.groups.progress(self.id))
        if found is None:
            raise InvalidArguments(f"group {self.id} does not exist: it was never enqueued, or ended 30 days ago")
        return GroupProgress(*found)
