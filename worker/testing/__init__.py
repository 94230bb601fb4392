"""The pytest plugin, and `JobRunner`, which runs one job in a test."""

from worker.testing.plugin import JobRunner

__all__ = ["JobRunner"]
