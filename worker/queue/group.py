"""Groups: many runs, and one that follows when all of them are done."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, TypeVar

from worker.errors import InvalidArguments
from worker.job.call import Call
from worker.job.middleware import EnqueueCall
from worker.job.propagation import current_headers
from worker.queue.chain import make_callback, make_next_calls, to_ms
from worker.queue.payload import Member, now_ms, payload_text
from worker.queue.run import Run

if TYPE_CHECKING:
    from worker.queue.client import Client

R = TypeVar("R")

Need = Literal["succeeded", "ended"]

_AT_ONCE = 500  # members in one call
_MOST_RESULTS = 10_000  # they are put together while Redis serves nobody else


class GroupProgress(NamedTuple):
    """How far a group is.

    Attributes:
        size: number of its members.
        done: of them, those that are done.
        called: whether all are, and the callback is in its queue.
    """

    size: int
    done: int
    called: bool


@dataclass(frozen=True)
class Group(Generic[R]):
    """A group that was enqueued.

    Attributes:
        id: of the group.
        runs: its members, in their order.
        then: the callback's run; None without one.
    """

    client: Client
    id: str
    runs: Sequence[Run[Any]]
    then: Run[R] | None

    async def progress(self) -> GroupProgress:
        """Return how far it is.

        Raises:
            InvalidArguments: there is no such group (any more).
        """
        found = await self.client.command(self.client.store.group(self.id))
        if found is None:
            raise InvalidArguments(f"there is no group {self.id}: it was never enqueued, or done 30 days ago")
        return GroupProgress(*found)


async def form(
    client: Client, calls: Sequence[Call[Any]], then: Call[R] | None, *, need: Need, group_id: str | None, queue: str
) -> Group[R]:
    """Enqueue a group; see `Client.group`."""
    if not calls:
        raise InvalidArguments("group: it has no members")
    if any(call.result_as for call in calls):
        raise InvalidArguments("group: its members are the first: there is no PREVIOUS_RESULT for them")
    if then is not None and then.job.enqueue_options.expires is not None:
        raise InvalidArguments("group: its callback cannot have expires=: nobody knows when the last member is done")
    wanted = then is not None and then.result_as is not None
    if wanted and len(calls) > _MOST_RESULTS:
        raise InvalidArguments(
            f"group: {len(calls):,} members whose results are wanted, of {_MOST_RESULTS:,} at most: let them write to "
            f"a table, and give the callback what finds them"
        )
    name = group_id or uuid.uuid4().hex
    callback = None if then is None else make_callback(then, group_id=name, queue=queue)
    await client.command(client.store.form_group(name, len(calls), need=need, callback=callback))
    runs: list[Run[Any]] = []
    members = [(call, place) for place, call in enumerate(calls, 1)]
    for _, alike in itertools.groupby(members, key=lambda member: _where(member[0], queue)):
        rest = list(alike)
        if client.hooks:
            runs += [await _enqueue_within_hooks(client, one, name, wanted=wanted, queue=queue) for one in rest]
            continue
        headers = current_headers()
        while rest:
            part, rest = rest[:_AT_ONCE], rest[_AT_ONCE:]
            runs += await _enqueue(client, part, name, wanted=wanted, queue=queue, headers=headers)
    last = None if then is None or callback is None else Run(client, callback["id"], callback["queue"], then.job)
    return Group(client, name, runs, last)


async def _enqueue_within_hooks(
    client: Client, member: tuple[Call[Any], int], group: str, *, wanted: bool, queue: str
) -> Run[Any]:
    """Enqueue a member as the middleware wants it."""
    call = member[0]
    told = EnqueueCall(call.job.name, call.arguments, _where(call, queue)[0], current_headers())

    async def put() -> Run[Any]:
        [run] = await _enqueue(client, [member], group, wanted=wanted, queue=queue, headers=told.headers)
        return run

    return await client.around(told, put)


async def _enqueue(
    client: Client,
    members: Sequence[tuple[Call[Any], int]],
    group: str,
    *,
    wanted: bool,
    queue: str,
    headers: Mapping[str, str],
) -> list[Run[Any]]:
    """Enqueue members that go to one queue, with one delay and one priority."""
    where, delay, priority = _where(members[0][0], queue)
    jobs = []
    for call, place in members:
        expires = to_ms(call.job.enqueue_options.expires)
        text = payload_text(
            call.job.name,
            call.arguments,
            version=call.job.version,
            until_ms=now_ms() + expires if expires else 0,
            then=make_next_calls(call.then),
            group=Member(group, place, wanted),
            headers=headers,
        )
        jobs.append((f"{group}:{place}", text))
    known = await client.command(
        client.store.enqueue_many(jobs, queue=where, delay=delay / 1000, priority=priority, group=group)
    )
    return [
        Run(client, run_id, where, call.job, is_new=at not in known)
        for at, ((run_id, _), (call, _)) in enumerate(zip(jobs, members, strict=True))
    ]


def _where(call: Call[Any], queue: str) -> tuple[str, int, int]:
    options = call.job.enqueue_options
    return options.queue or queue, to_ms(options.delay), call.job.priority
