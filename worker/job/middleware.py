"""Middleware: what is to be done around each enqueueing, and around each run."""

from __future__ import annotations

import importlib
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from worker.errors import RegistrationError

if TYPE_CHECKING:
    from worker.attempt.context import JobContext


@dataclass
class EnqueueCall:
    """A run that is about to be enqueued.

    Attributes:
        job: name of the job.
        arguments_json: its arguments, the text of a JSON object by name; of a job by name without its function, perhaps
            of an array, those by place.
        queue: where it goes.
        headers: texts by name that travel with it, see `ctx.headers`: what a middleware adds here, it finds there.
    """

    job: str
    arguments_json: str
    queue: str
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def arguments(self) -> Any:
        """The arguments as JSON values."""
        return json.loads(self.arguments_json)


class Middleware:
    """Hooks around enqueueing and running; derive from it, and override one of them, or both.

    Of several, the first is the outermost.
    """

    async def enqueue(self, call: EnqueueCall, proceed: Callable[[], Awaitable[Any]]) -> Any:
        """Do something around the enqueueing of a run; in the process of the client.

        Args:
            call: what is enqueued; headers can be added.
            proceed: enqueues it. What is raised before that keeps it from being enqueued, and goes to the caller.

        Returns:
            The run.
        """
        return await proceed()

    async def run(self, ctx: JobContext, proceed: Callable[[], Awaitable[Any]]) -> Any:
        """Do something around each try of a run; in the worker, in the job's own task.

        Args:
            ctx: the job's context.
            proceed: runs the job, to the commit of its last batch; call it once. What is raised here fails the try as
                the job's own error does: what is committed stays, and it is tried again by the same rules.

        Returns:
            The run's result.
        """
        return await proceed()


EnqueueHook = Callable[[EnqueueCall, Callable[[], Awaitable[Any]]], Awaitable[Any]]
RunHook = Callable[["JobContext", Callable[[], Awaitable[Any]]], Awaitable[Any]]


def enqueue_hooks(middleware: Iterable[Middleware]) -> tuple[EnqueueHook, ...]:
    """Return the hooks around enqueueing that do something, outermost first."""
    return tuple(one.enqueue for one in middleware if type(one).enqueue is not Middleware.enqueue)


def run_hooks(middleware: Iterable[Middleware]) -> tuple[RunHook, ...]:
    """Return the hooks around runs that do something, outermost first."""
    return tuple(one.run for one in middleware if type(one).run is not Middleware.run)


async def through(
    hooks: Sequence[Callable[[Any, Callable[[], Awaitable[Any]]], Awaitable[Any]]],
    what: Any,
    innermost: Callable[[], Awaitable[Any]],
) -> Any:
    """Call something within hooks.

    Args:
        hooks: outermost first.
        what: their first argument.
        innermost: what they are around.
    """
    proceed = innermost
    for hook in reversed(hooks):
        proceed = partial(hook, what, proceed)
    return await proceed()


def load_middleware(places: Iterable[str]) -> list[Middleware]:
    """Import what `worker.middleware` names: `module:name` of instances, or of classes that take no arguments.

    Raises:
        RegistrationError: there is none of that name, or it is no middleware.
    """
    return [_load(place) for place in places]


def _load(place: str) -> Middleware:
    module, _, name = place.partition(":")
    try:
        found = getattr(importlib.import_module(module), name or "?")
    except (ImportError, AttributeError) as error:
        raise RegistrationError(f"worker.middleware: {place}: {error}: write module:name") from error
    made = found() if isinstance(found, type) else found
    if not isinstance(made, Middleware):
        raise RegistrationError(f"worker.middleware: {place} is no worker.Middleware: derive it from that")
    return made
