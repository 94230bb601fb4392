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
#: Orders whose targets are runs, by their names in the API and in the record of orders.
_OF_RUNS = (
    "enqueue",
    "cancel",
    "retry",
    "retry_dead_letters",
    "retry_quarantined",
    "dead_letters_retry",
    "quarantine_retry",
)
#: Orders whose targets are jobs or queues.
_OF_LIMITS = ("limit", "rate")
#: Orders whose targets are runs, jobs, queues or all.
_OF_ANY = ("pause", "resume", "pace", "cron_run", *_OF_LIMITS)


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


class Names(NamedTuple):
    """The names of jobs and of queues: all others are those of runs."""

    jobs: frozenset[str]
    queues: frozenset[str]


async def list_links(order: str, result: Any, backend: Backend) -> list[Link]:
    """Return the links for the names in the sentence of an order, in their order."""
    if isinstance(result, EnqueuedView):
        return [_link_run(result.id)]
    if not isinstance(result, TargetsView):
        return []
    names = [*result.changed[:NAMES_SHOWN], *result.unchanged[:NAMES_SHOWN]]
    known = await read_names(backend)
    return [link for name in names if (link := link_target(order, name, known)) is not None]


async def read_names(backend: Backend) -> Names:
    """Return the names that this server knows."""
    jobs: frozenset[str] = frozenset()
    with contextlib.suppress(RegistrationError):
        jobs = frozenset(await backend.load_jobs())
    settings = backend.settings.worker
    return Names(jobs, frozenset({settings.queue, *(settings.queues or [])}))


def link_target(order: str, name: str, names: Names) -> Link | None:
    """Return the link for a target of an order; None if no view shows it."""
    job, is_entry, _ = name.partition("?")  # an order for the runs of a job with some arguments
    if order in _OF_RUNS and not (is_entry and job in names.jobs):
        return _link_run(name)
    if order not in (*_OF_RUNS, *_OF_ANY) or name == keys.ALL:
        return None
    if job in names.jobs:
        return Link(name[:LONGEST_NAME], "job", {"job": job})
    if name in names.queues or order in _OF_LIMITS:
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
