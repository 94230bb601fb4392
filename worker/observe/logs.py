"""The log: lines for people, or one JSON object each."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime

from worker.job.propagation import current_job, traceparent
from worker.settings import LogSettings


class JsonFormatter(logging.Formatter):
    """One JSON object a line: at, level, logger, message, the job where there is one, and its trace."""

    def format(self, record: logging.LogRecord) -> str:
        values = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        job = current_job.get()
        if job:
            values["job"] = job
        trace = traceparent.get()
        if trace:
            values["traceparent"] = trace
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values, ensure_ascii=False)


def configure(settings: LogSettings) -> None:
    """Send the log to standard error, in the form and from the level of the settings."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.format == "json":
        handler.setFormatter(JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s", "%H:%M:%S"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level)
    # Their own words about each statement and connection are for DEBUG only.
    for name in ("alembic", "asyncio", "arq"):
        logging.getLogger(name).setLevel(max(logging.WARNING, root.level))
