"""The pytest plugin, and `JobRunner`, which runs one job in a test."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worker.testing.runner import JobRunner

__all__ = ["JobRunner"]


def __getattr__(name: str) -> Any:
    """Load `JobRunner` when it is first used: pytest imports this package in every project."""
    if name != "JobRunner":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from worker.testing.runner import JobRunner

    return JobRunner
