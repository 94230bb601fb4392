"""Context variables that travel: set where a run is enqueued, they are set in its job, in a thread and a process, too.

They go as headers of the payload, texts by name, and stay with the run through retries, takeovers and dead letters.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar

from worker.errors import RegistrationError

#: Name of the job that runs in the current context; empty outside of a job.
current_job: ContextVar[str] = ContextVar("current_job", default="")

_carried: dict[str, ContextVar[str]] = {}


def propagate(variable: ContextVar[str]) -> ContextVar[str]:
    """Declare a context variable that travels with each run: `tenant = propagate(ContextVar("tenant", default=""))`.

    An empty one is left behind. Say it once, in a module that both sides import.

    Args:
        variable: its name is that of the header.

    Returns:
        The variable.

    Raises:
        RegistrationError: another one has its name.
    """
    if _carried.setdefault(variable.name, variable) is not variable:
        raise RegistrationError(f"propagate: another context variable is named {variable.name!r}: rename one")
    return variable


def leaving() -> dict[str, str]:
    """Return the headers that a run which is enqueued here has for its variables."""
    return {name: value for name, variable in _carried.items() if (value := variable.get(""))}


def arrive(headers: Mapping[str, str]) -> None:
    """Set the variables in the current context, that of a job which is about to begin."""
    for name, value in headers.items():
        if name in _carried:
            _carried[name].set(value)
