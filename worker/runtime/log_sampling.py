"""Lines of the log that come with each job: all of them while jobs are few, and their number when they are many."""

from __future__ import annotations

import logging
import time

_LINES_A_SECOND = 100


class SampledLogger:
    """A log that leaves lines out when there are too many, and says how many it has left out.

    Args:
        logger: where they go.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._second = 0
        self._said = 0
        self._left_out = 0

    def info(self, message: str, *values: object) -> None:
        """Log a line, unless this second has had enough of them."""
        if not self._logger.isEnabledFor(logging.INFO):
            return
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._said = second, 0
            self.tell()
        self._said += 1
        if self._said <= _LINES_A_SECOND:
            self._logger.info(message, *values)
        else:
            self._left_out += 1

    def tell(self) -> None:
        """Say how many lines were left out."""
        if self._left_out:
            self._logger.info("%d lines like these were left out", self._left_out)
            self._left_out = 0
