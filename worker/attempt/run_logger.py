"""`RunLogger`: the log that a job's context offers."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

from worker.job.propagation import RECORD_ATTEMPT, AttemptFields

#: Loggers of `ctx.log` are below this one, so that `log.levels` can name one job, or all.
ROOT = "job"


class RunLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger whose records belong to an attempt in any thread, also where its context variables are not set.

    Args:
        fields: the attempt.
    """

    def __init__(self, fields: AttemptFields) -> None:
        super().__init__(logging.getLogger(f"{ROOT}.{fields.job}"), {})
        self._fields = fields

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Return the message and its arguments, with the attempt beside the fields of `extra`."""
        kwargs["extra"] = {**(kwargs.get("extra") or {}), RECORD_ATTEMPT: self._fields}
        return msg, kwargs
