"""The pytest plugin, `JobRunner`, which runs one job in a test, and `Recorder`, which notes what a test enqueues."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.testing.recorder import EnqueuedRun, Recorder
    from worker.testing.runner import JobRunner

__all__ = ["EnqueuedRun", "JobRunner", "Recorder"]

_HOMES = {
    "EnqueuedRun": "worker.testing.recorder",
    "JobRunner": "worker.testing.runner",
    "Recorder": "worker.testing.recorder",
}


def __getattr__(name: str) -> Any:
    """Load a name when it is first used: pytest imports this package in every project."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
