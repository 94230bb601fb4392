"""Classification of errors of Redis."""

from __future__ import annotations

from redis import exceptions

from worker.errors import iter_causes


class ConnectionLost(exceptions.ConnectionError):
    """The connection to Redis has ended in a way for which redis-py has no error."""


class ClusterRedirect(exceptions.ConnectionError):
    """A node of a cluster has not executed a command, because it does not serve the hash slot at this time."""


class PipelineInterrupted(exceptions.ConnectionError):
    """A node of a cluster has executed only the first commands of a pipeline: it served the hash slot no longer."""


_UNAVAILABLE = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
)


def is_unavailable(error: BaseException) -> bool:
    """Return whether an error means that Redis is unreachable or rejects writes, and not that a job is invalid."""
    return any(isinstance(cause, _UNAVAILABLE) for cause in iter_causes(error))
