"""Links in the sentence that follows an order: to the runs, jobs and limits that it names."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from worker.errors import RegistrationError
from worker.queue import keys
from worker.web.backend import Backend
from worker.web.effects import EnqueuedView, TargetsView

#: Letters of a name in a sentence.
LONGEST_NAME = 80
NAMES_SHOWN = 3
#: Orders whose targets are runs.
_OF_RUNS = ("cancel", "retry", "retry_dead_letters", "retry_quarantined")
#: Orders whose targets are runs, jobs, queues or all.
_OF_ANY = ("pause", "resume", "pace", "limit")


class Link(NamedTuple):
    """A link in a sentence.

    Attributes:
        name: the words of the sentence.
        view: the view.
        parameters: the parameters of its address.
    """

    name: str
    view: str
    parameters: Mapping[str, str]


async def list_links(order: str, result: Any, backend: Backend) -> list[Link]:
    """Return the links for the names in the sentence of an order, in their order."""
    if isinstance(result, EnqueuedView):
        return [_link_run(result.id)]
    if not isinstance(result, TargetsView):
        return []
    names = [*result.changed[:NAMES_SHOWN], *result.unchanged[:NAMES_SHOWN]]
    if order in _OF_RUNS:
        return [_link_run(name) for name in names]
    if order not in _OF_ANY:
        return []
    jobs: set[str] = set()
    with contextlib.suppress(RegistrationError):
        jobs = set(await backend.load_jobs())
    settings = backend.settings.worker
    queues = {settings.queue, *(settings.queues or [])}
    return [_link_any(name, order, jobs, queues) for name in names if name != keys.ALL]


def _link_any(name: str, order: str, jobs: set[str], queues: set[str]) -> Link:
    if name in jobs:
        return Link(name[:LONGEST_NAME], "job", {"job": name})
    if name in queues or order == "limit":
        return Link(name[:LONGEST_NAME], "limits", {"search": name})
    return _link_run(name)


def _link_run(run_id: str) -> Link:
    return Link(run_id[:LONGEST_NAME], "run", {"run_id": run_id})


def split(text: str, links: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the parts of a sentence, each with its address; empty for those that are no link."""
    parts: list[tuple[str, str]] = []
    for name, address in links:
        before, found, rest = text.partition(name)
        if found:
            parts += [(before, ""), (name, address)]
            text = rest
    return [part for part in [*parts, (text, "")] if part[0]]
