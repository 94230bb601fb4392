"""The type of the fixture `context`."""

from __future__ import annotations

from collections.abc import Callable

from worker.attempt.context import JobContext

#: Makes contexts outside of a worker; the same `run_id` again is the next attempt of that run, by another worker.
MakeContext = Callable[..., JobContext]
