"""Log lines that come with each job: all of them while jobs are few, a sample and a count while they are many."""

from __future__ import annotations

import logging
import time

_LINES_PER_SECOND = 100


class SampledLogger:
    """A logger that leaves lines out when there are too many, and logs how many it has left out.

    Args:
        logger: where they go.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._second = 0
        self._logged = 0
        self._omitted = 0

    def info(self, message: str, *values: object) -> None:
        """Log a line, unless this second has had enough of them."""
        if not self._logger.isEnabledFor(logging.INFO):
            return
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._logged = second, 0
            self.flush()
        self._logged += 1
        if self._logged <= _LINES_PER_SECOND:
            self._logger.info(message, *values)
        else:
            self._omitted += 1

    def flush(self) -> None:
        """Log how many lines were left out."""
        if self._omitted:
            self._logger.info("lines omitted count=%d", self._omitted)
            self._omitted = 0
