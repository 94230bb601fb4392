"""A streaming replica of an embedded server, made by pg_basebackup."""

from __future__ import annotations

import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from worker.embedded import process
from worker.embedded.postgres import EmbeddedPostgres


class Replica(EmbeddedPostgres):
    """A hot standby of `primary`, which runs.

    Args:
        home: folder made by `make_home`, and not the primary's.
        primary: what it follows.
    """

    def __init__(self, home: Path, primary: EmbeddedPostgres) -> None:
        super().__init__(home)
        self._primary = primary

    @property
    def url(self) -> str:
        """URL of the database `postgres`, with the primary's password."""
        parts = urlsplit(self._primary.url)
        return self._primary.url.replace(f":{parts.port}/", f":{self.port}/")

    def _initdb(self, cluster: Path) -> None:
        # -R: as a standby that follows the primary; -X stream: with the WAL that is written meanwhile.
        command = ["pg_basebackup", "-d", self._primary.url, "-D", cluster, "-R", "-X", "stream", "-c", "fast"]
        subprocess.run(  # type: ignore[call-overload]
            [self._bin / command[0], *command[1:]],
            check=True,
            capture_output=True,
            cwd="/",
            **process.run_as(self._user),
        )
