"""Log lines that are written for each job: all of them at a low rate of jobs, a sample and a count at a high rate."""

from __future__ import annotations

import logging
import time

_LINES_PER_SECOND = 100


class SampledLogger:
    """A logger that omits lines above a rate, and logs the number of omitted lines.

    Args:
        logger: the logger that receives the lines.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._second = 0
        self._logged = 0
        self._omitted = 0

    def info(self, message: str, *values: object) -> None:
        """Log a line, unless the limit for this second is reached."""
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
        """Log the number of omitted lines."""
        if self._omitted:
            self._logger.info("lines omitted count=%d", self._omitted)
            self._omitted = 0
