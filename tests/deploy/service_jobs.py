"""A job that blocks the event loop of its process until a file exists."""

from __future__ import annotations

import time
from pathlib import Path

from worker import JobContext, job


@job
async def block(ctx: JobContext, folder: str) -> None:
    """Block the event loop."""
    Path(folder, "blocked").touch()
    while not Path(folder, "go").exists():
        time.sleep(0.01)
