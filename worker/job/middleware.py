"""Middleware: hooks around each enqueueing and around each attempt."""

from __future__ import annotations

import importlib
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from worker.errors import RegistrationError

if TYPE_CHECKING:
    from worker.attempt.context import JobContext
    from worker.settings import Settings


@dataclass
class EnqueueCall:
    """A run that is about to be enqueued.

    Attributes:
        job: name of the job.
        arguments_json: the arguments, the text of a JSON object by name. For a job that is enqueued by its name with
            positional arguments it is the text of an array.
        queue: name of the queue.
        headers: texts by name that travel with the run. A header that is added here is in `ctx.headers` there.
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
    """Base class of middleware: override `enqueue`, `run`, or both. Of several, the first is the outermost.

    Attributes:
        observer: an `Observer` of worker/runtime/observer.py that receives the worker's events; None for none.
    """

    observer: Any = None

    async def enqueue(self, call: EnqueueCall, proceed: Callable[[], Awaitable[Any]]) -> Any:
        """Run around the enqueueing of a run, in the process of the client.

        Args:
            call: the run; add headers to it.
            proceed: enqueues the run. An exception before that prevents it, and is raised in the caller.

        Returns:
            The run.
        """
        return await proceed()

    async def run(self, ctx: JobContext, proceed: Callable[[], Awaitable[Any]]) -> Any:
        """Run around each attempt of a run, in the worker, in the task of the job.

        Args:
            ctx: the context of the job.
            proceed: runs the job until its last batch is committed; call it once. An exception here fails the attempt
                as an error of the job does: committed batches stay, and the attempt is retried by the same rules.

        Returns:
            The run's result.
        """
        return await proceed()


#: Imported by name: its package is optional, and in a room above.
_ENQUEUE_TRACING = "worker.observe.enqueue_tracing:EnqueueTracing"

EnqueueHook = Callable[[EnqueueCall, Callable[[], Awaitable[Any]]], Awaitable[Any]]
RunHook = Callable[["JobContext", Callable[[], Awaitable[Any]]], Awaitable[Any]]


def enqueue_hooks(middleware: Iterable[Middleware]) -> tuple[EnqueueHook, ...]:
    """Return the overridden hooks around enqueueing, outermost first."""
    return tuple(one.enqueue for one in middleware if type(one).enqueue is not Middleware.enqueue)


def run_hooks(middleware: Iterable[Middleware]) -> tuple[RunHook, ...]:
    """Return the overridden hooks around attempts, outermost first."""
    return tuple(one.run for one in middleware if type(one).run is not Middleware.run)


async def through(
    hooks: Sequence[Callable[[Any, Callable[[], Awaitable[Any]]], Awaitable[Any]]],
    what: Any,
    innermost: Callable[[], Awaitable[Any]],
) -> Any:
    """Call a function within hooks.

    Args:
        hooks: outermost first.
        what: first argument of each hook.
        innermost: the function.
    """
    proceed = innermost
    for hook in reversed(hooks):
        proceed = partial(hook, what, proceed)
    return await proceed()


def configured_middleware(settings: Settings) -> list[Middleware]:
    """Return the middleware of the settings, outermost first: that of tracing if it is enabled, and the user's.

    Raises:
        RegistrationError: A name cannot be imported, or is not that of a middleware; or OpenTelemetry is not installed.
    """
    places = settings.worker.middleware
    if settings.tracing.enabled:
        if settings.tracing.setup is not None:
            _call_once(settings.tracing.setup)
        places = [_ENQUEUE_TRACING, *places]
    return load_middleware(places)


@cache
def _call_once(place: str) -> None:
    """Call the function that sets up OpenTelemetry, once in a process."""
    _find("tracing.setup", place)()


def load_middleware(places: Iterable[str]) -> list[Middleware]:
    """Import the middleware that `worker.middleware` names.

    Args:
        places: `module:name` of instances, or of classes that take no arguments.

    Raises:
        RegistrationError: A name cannot be imported, or is not that of a middleware.
    """
    return [_load(place) for place in places]


def _load(place: str) -> Middleware:
    found = _find("worker.middleware", place)
    made = found() if isinstance(found, type) else found
    if not isinstance(made, Middleware):
        raise RegistrationError(f"worker.middleware: {place} is not a worker.Middleware: derive its class from it")
    return made


def _find(setting: str, place: str) -> Any:
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name or "?")
    except (ImportError, AttributeError) as error:
        if (getattr(error, "name", None) or "").startswith("opentelemetry"):
            advice = "tracing.enabled needs OpenTelemetry: pip install 'longhaul-worker[opentelemetry]'"
            raise RegistrationError(f"{advice}: {error}") from error
        raise RegistrationError(f"{setting}: {place}: {error}: write module:name") from error
