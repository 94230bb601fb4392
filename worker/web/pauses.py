"""The pauses that apply to a run: which entry holds it, since when, and who has ordered it."""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import cast

from worker.queue import keys
from worker.web.backend import Backend
from worker.web.event_log import read_targets
from worker.web.fields import read_moment
from worker.web.views import PauseView


async def list_pauses(backend: Backend, names: Sequence[str]) -> list[PauseView]:
    """Return the entries of `worker:paused` for names, in their order, each with its order if the events have it.

    Args:
        backend: the servers.
        names: the id of the run, the names of its job and of its queue, and `*`.
    """
    answers = await backend.client.command(
        cast(Awaitable[list[int]], backend.client.redis.smismember(keys.PAUSED, list(names)))
    )
    held = [name for name, is_paused in zip(names, answers, strict=True) if is_paused]
    if not held:
        return []
    found: dict[str, PauseView] = {}
    for event in await backend.event_log.list_all():  # newest first
        if event.fields.get("event") != "ordered" or event.fields.get("order") != "pause":
            continue
        at, by = read_moment(event.fields.get("at")), event.fields.get("by")
        for name in read_targets(event).intersection(held).difference(found):
            found[name] = PauseView(name=name, at=at, by=by)
        if len(found) == len(held):
            break
    return [found.get(name, PauseView(name=name)) for name in held]
